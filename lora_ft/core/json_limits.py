"""Limits on untrusted JSON, checked before a parser sees it.

Parsers trust their input: 200 KB of brackets take ijson 8 GB, and a number of 4,301 digits ends the process. The cost
of JSON depends on three counts that need no parsing: the nesting depth, the length of numbers, and the length of
strings. `JsonLimits` counts them chunk by chunk with numpy, at several hundred MB per second. Files of any size can
therefore be checked while they are read. In malformed JSON the counts may be wrong after the first invalid byte, but
the parser stops at that byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError

MAX_DEPTH = 200
"""Maximum nesting depth of lists and objects; formats in use stay below 50."""
MAX_DIGITS = 300
"""Maximum length of a number, in characters; integers of up to 308 digits still fit a float."""
MAX_STRING = 1 << 24
"""Maximum length of a string in a file that is read in chunks, in bytes."""
_SLICE = 1 << 18  # bytes of a text checked at once
_SHOWN = 40  # characters of an untrusted key shown in an error
_ESCAPED_HALF = re.compile(r"\\u[dD][89abA-F]")

_QUOTE, _OPEN, _CLOSE = b"\1\2\3"
_KINDS = bytes(
    {ord('"'): _QUOTE, **dict.fromkeys(b"[{", _OPEN), **dict.fromkeys(b"]}", _CLOSE)}.get(byte, 0)
    for byte in range(256)
)
_STEPS = np.array([0, 0, 1, -1], np.int32)  # change of depth by kind: other, quote, open, close
_IN_NUMBER = bytes(byte in b"0123456789+-.eE" for byte in range(256))
_TOO_LONG = (MAX_DIGITS + 1) * b"\1"


class JsonLimits:
    """An incremental check of JSON in chunks, which may be split at any byte.

    Args:
        where: Name of the source, for errors.
        max_string: Maximum length of a string, in bytes.
    """

    def __init__(self, where: object, *, max_string: int = MAX_STRING) -> None:
        self._where, self._max_string = where, max_string
        self._offset = 0  # bytes before this chunk
        self._depth = 0
        self._inside = False  # inside a string
        self._escaped = False  # the next byte follows a backslash
        self._string = self._number = 0  # bytes so far of an unfinished string or number

    def check(self, chunk: bytes) -> None:
        """Check the next chunk.

        Raises:
            LoraFtError: A limit is exceeded. The error names the source and the byte.
        """
        if not chunk:
            return
        letters = self._without_escapes(chunk)
        kinds = np.frombuffer(letters.translate(_KINDS), np.uint8)
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        quotes = places[kinds == _QUOTE]
        inside = (np.cumsum(kinds == _QUOTE) + self._inside) % 2 == 1
        self._check_depth(places, np.where(inside, 0, _STEPS[kinds]))
        self._check_numbers(letters, quotes)
        self._check_strings(quotes, len(chunk))
        self._offset += len(chunk)

    def _without_escapes(self, chunk: bytes) -> bytes:
        """Return the chunk with escaped quotes and backslashes replaced, at the same length."""
        if self._escaped:
            chunk = b"_" + chunk[1:]
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._escaped = chunk.endswith(b"\\")
        return chunk

    def _check_depth(self, places: np.ndarray, steps: np.ndarray) -> None:
        depths = self._depth + np.cumsum(steps)
        if depths.size and depths.max() > MAX_DEPTH:
            place = places[int(np.argmax(depths > MAX_DEPTH))]
            raise self._error(place, f"nested deeper than {MAX_DEPTH} levels")
        self._depth = int(depths[-1]) if depths.size else self._depth

    def _check_numbers(self, letters: bytes, quotes: np.ndarray) -> None:
        marks = self._number * b"\1" + letters.translate(_IN_NUMBER)
        start = marks.find(_TOO_LONG)
        while start >= 0:
            place = max(0, start - self._number)
            if (np.searchsorted(quotes, place) + self._inside) % 2 == 0:
                raise self._error(place, f"a number of more than {MAX_DIGITS} characters")
            end = marks.find(b"\0", start)
            start = marks.find(_TOO_LONG, end) if end >= 0 else -1
        ends_inside = (len(quotes) + self._inside) % 2
        self._number = 0 if ends_inside else len(marks) - len(marks.rstrip(b"\1"))

    def _check_strings(self, quotes: np.ndarray, size: int) -> None:
        bounds = [[-1 - self._string]] if self._inside else []
        self._inside = bool((len(quotes) + self._inside) % 2)
        pairs = np.concatenate((*bounds, quotes, [size] if self._inside else [])).reshape(-1, 2)
        lengths = pairs[:, 1] - pairs[:, 0] - 1
        if lengths.size and lengths.max() > self._max_string:
            raise self._error(
                max(0, int(pairs[np.argmax(lengths), 0])), f"a string of more than {self._max_string:,} bytes"
            )
        self._string = int(lengths[-1]) if self._inside else 0

    def _error(self, place: int, limit: str) -> LoraFtError:
        return LoraFtError(f"{self._where} is out of bounds at byte {self._offset + place:,} ({limit})", _REMEDY)


_REMEDY = "check the origin of the file; no common program writes such JSON"


def parse_json(text: str | bytes, where: object) -> Any:
    """Parse an untrusted JSON text.

    Args:
        text: Complete JSON text, with or without a byte order mark.
        where: Name of the source, for errors.

    Raises:
        LoraFtError: The text is not UTF-8 or not JSON, or has a duplicate key or a lone surrogate. Or it is nested
            deeper than `MAX_DEPTH`, or has an integer longer than `MAX_DIGITS`.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LoraFtError(f"{where} is not UTF-8 (byte {error.start:,})", "save the file as UTF-8") from error
    text = text.removeprefix("\ufeff")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        limits, data = JsonLimits(where, max_string=len(text) * 4), text.encode("utf-8", "surrogatepass")
        for start in range(0, len(data), _SLICE):
            limits.check(data[start : start + _SLICE])
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
        if not text.isascii() or _ESCAPED_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text else f"line {error.lineno}, column {error.colno}"
        raise LoraFtError(
            f"{where} is not JSON ({error.msg}: {place})", "correct it, or copy the file again"
        ) from error
    except UnicodeEncodeError as error:
        raise LoraFtError(f"{where} holds half a character (a lone surrogate)", "write the text as UTF-8") from error
    except OutOfBoundsError as error:
        raise LoraFtError(f"{where} {error}", error.remedy) from error
    except RecursionError as error:
        raise LoraFtError(f"{where} is nested too deeply", _REMEDY) from error
    return value


def lines_at(text: str, depth: int) -> list[int]:
    """Return the line numbers, from 1, of all objects and lists at nesting depth `depth` in a valid JSON text."""
    data = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"__").replace(b'\\"', b"__")
    kinds = np.frombuffer(data.translate(_KINDS), np.uint8)
    places = np.flatnonzero(kinds)
    kinds = kinds[places]
    steps = np.where(np.cumsum(kinds == _QUOTE) % 2 == 1, 0, _STEPS[kinds])  # brackets inside strings do not count
    opening = places[(steps == 1) & (np.cumsum(steps) == depth + 1)]
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    lines: list[int] = (np.searchsorted(breaks, opening) + 1).tolist()
    return lines


def bounded_decoder() -> json.JSONDecoder:
    """Return a decoder for texts of several consecutive values (JSON Lines).

    The decoder raises json.JSONDecodeError, RecursionError, or OutOfBoundsError (a duplicate key or a long integer).
    It does not check the depth; use `JsonLimits` for that.
    """
    return json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


class OutOfBoundsError(ValueError):
    """An error about a JSON value whose message does not name the source.

    Attributes:
        remedy: Remedy for the message.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    items = list(pairs)
    value = dict(items)
    if len(value) < len(items):
        distinct: set[str] = set()
        repeated = next(key for key, _ in items if key in distinct or distinct.add(key))  # type: ignore[func-returns-value]
        raise OutOfBoundsError(f"has the key {repeated[:_SHOWN]!r} twice in one object", "remove one of the two")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise OutOfBoundsError(f"has a number of {len(digits):,} digits (at most {MAX_DIGITS})", "write it in quotes")
    return int(digits)
