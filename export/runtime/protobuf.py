"""Reader of a protobuf message's top-level fields. The runtime depends on neither protobuf nor onnx.

A message is a sequence of fields, each with a key (field number and wire type) and a content. The reader yields fields
of bytes (wire type 2: texts and messages) and skips the others. It refuses encodings that protobuf's own writer never
produces, so that all readers agree on where a field ends.
"""

from __future__ import annotations

from collections.abc import Iterator

_FIXED = {1: 8, 5: 4}  # content lengths by wire type, in bytes
_LONGEST = 10  # maximum length of a varint, in bytes


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (field number, content) of each text or nested message at the top level of `message`.

    Raises:
        ValueError: The message is malformed.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(message, at)
            continue
        length, at = _varint(message, at) if wire == 2 else (_FIXED.get(wire), at)
        if number == 0 or length is None or at + length > len(message):
            raise ValueError(f"field {number} of wire type {wire} at byte {at} is malformed")
        if wire == 2:
            yield number, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at byte `at` (7 bits per byte, lowest bits first) and the position after it."""
    value = 0
    for place, octet in enumerate(message[at : at + _LONGEST]):
        value |= (octet & 127) << (7 * place)
        if octet < 128:
            if octet == 0 and place:
                raise ValueError(f"the number at byte {at} is longer than it needs to be")
            return value, at + place + 1
    raise ValueError(f"the number at byte {at} does not end")
