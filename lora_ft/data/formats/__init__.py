"""Formats of data files: bytes, compressed or not, to text; text to rows. `lora_ft.data.readers` chooses among them."""
