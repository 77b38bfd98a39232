"""Readers of data files: decompress and decode bytes, and parse rows. `lora_ft.data.readers` chooses the reader."""
