"""The bytes of each token: what it adds to an answer, in the codec's form."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_REPLACEMENT = "\ufffd"


def token_bytes(names: Sequence[str], texts: Sequence[str]) -> list[bytes]:
    """Return the bytes of each token; b"" for one that adds nothing or half of a character nobody knows.

    Args:
        names: Names of the tokens in the vocabulary.
        texts: Text that each adds behind another token. Part of a character is U+FFFD in it.
    """
    values = {name: byte for byte, name in enumerate(byte_names())}
    return [
        _bytes_of(name, values) if _REPLACEMENT in text else text.encode("utf-8", "replace")
        for name, text in zip(names, texts, strict=True)
    ]


def _bytes_of(name: str, values: dict[str, int]) -> bytes:
    if match := _BYTE.fullmatch(name):  # the byte fallback of sentencepiece
        return bytes([int(match[1], 16)])
    return bytes(values[character] for character in name) if all(c in values for c in name) else b""


def byte_names() -> list[str]:
    """Return the character that tokenizers' ByteLevel uses for each byte (as in openai/gpt-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}
    return [names[byte] for byte in range(256)]
