"""Formats of data files: bytes, compressed or not, to text; text to rows. `lora_ft.readers` chooses among them."""
