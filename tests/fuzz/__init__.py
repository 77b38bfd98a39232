"""Damaged and hostile inputs of every kind: each is read, or refused with a one-line error.

`make test` tries a few dozen of each kind, and `make fuzz` ten thousand (LORA_FT_FUZZ sets the number). An input may
not raise another library's exception, take five seconds of the processor, or a gigabyte of memory.
"""
