"""Type-checked fields of JSON objects that another program wrote.

Exports may hold lists instead of objects, null instead of text, and numbers instead of names. Every reader accesses
fields through `Fields`, so each such error names the file, the message and the field.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Any

from lora_ft.core.errors import LoraFtError

_SHOWN = 40  # maximum characters of a value shown in an error
_FIRST, _LAST = -62135596800, 253402300799  # first second of the year 1 and last of 9999, since 1970
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


class Fields:
    """Object of an export. A missing field and a null field both count as empty.

    Args:
        value: Parsed object.
        where: File and message, for errors.
        program: Name of the exporting program, for errors.

    Raises:
        LoraFtError: `value` is not an object.
    """

    def __init__(self, value: Any, where: str, program: str) -> None:
        self.where, self._program = where, program
        if not isinstance(value, dict):
            raise self._error("it", value, "an object")
        self._value: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def named(self, *keys: str) -> Fields:
        """Return the same object, named in errors by the first of the fields `keys` with a text or number."""
        values = (self._value.get(key) for key in keys)
        name = next((value for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)), None)
        return self if name is None else Fields(self._value, f"{self.where}, message {_short(name)}", self._program)

    def text(self, key: str) -> str:
        """Return a text, or "" if the field is empty."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(key, value, "a text")
        return value or ""

    def key(self, key: str) -> str:
        """Return an id (a text or an integer) as text, or "" if the field is empty."""
        value = self._value.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key)

    def flag(self, key: str) -> bool:
        """Return a Boolean, or False if the field is empty."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return bool(value)

    def child(self, key: str) -> Fields | None:
        """Return an object, or None if the field is empty."""
        value = self._value.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._error(key, value, "an object")
        return Fields(value, self.where, self._program)

    def values(self, key: str) -> list[Any]:
        """Return the elements of a list. An empty field has no elements."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, list):
            raise self._error(key, value, "a list")
        return value or []

    def children(self, key: str) -> Iterator[Fields]:
        """Yield the objects of a list."""
        for value in self.values(key):
            if not isinstance(value, dict):
                raise self._error(key, value, "a list of objects")
            yield Fields(value, self.where, self._program)

    def raw(self, key: str) -> Any:
        """Return a value of any type, or None if the field is empty."""
        return self._value.get(key)

    def seconds(self, key: str, *, per_second: int = 1) -> float:
        """Return a time in seconds since 1970, from a required field with a number or a text of digits.

        Args:
            key: Name of the field.
            per_second: Units of the field per second, e.g. 1000 for milliseconds.
        """
        value = self._value.get(key)
        try:
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise ValueError(key)
            time = float(value) / per_second
        except (ValueError, OverflowError) as error:
            raise self._dateless(key, value) from error
        if not math.isfinite(time) or not _FIRST <= time <= _LAST:
            raise self._dateless(key, value)
        return time

    def date(self, key: str) -> float:
        """Return an ISO 8601 date in seconds since 1970. A date without a time zone is read as UTC."""
        value = self._value.get(key)
        try:
            date = datetime.datetime.fromisoformat(value)  # type: ignore[arg-type]  # TypeError below
            return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
        except (ValueError, TypeError, OverflowError) as error:
            raise self._dateless(key, value) from error

    def refuse(self, key: str, expected: str) -> LoraFtError:
        """Return the error for a field with an unexpected value."""
        return self._error(key, self._value.get(key), expected)

    def _error(self, key: str, value: Any, expected: str) -> LoraFtError:
        kind = "null" if value is None else _KINDS.get(type(value), type(value).__name__)
        subject = f"{self.where} is" if key == "it" else f"{self.where}: {key} is"
        return LoraFtError(
            f"{subject} {kind}, not {expected} (got {_short(value)})", f"export it again from {self._program}"
        )

    def _dateless(self, key: str, value: Any) -> LoraFtError:
        return LoraFtError(
            f"{self.where}, has no date that can be read ({key}: {_short(value)})",
            f"export it again from {self._program}",
        )


def _short(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
