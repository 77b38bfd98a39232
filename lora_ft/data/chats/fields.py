"""Fields of an object that another program wrote, read with their types checked.

Exports hold lists where objects are expected, null where a text is, numbers where a name is. Every reader takes its
fields through `Fields`, so that each of these is one error that names the file, the message and the field.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Any

from lora_ft.core.errors import LoraFtError

_SHOWN = 40  # characters of a foreign value in an error
_FIRST, _LAST = -62135596800, 253402300799  # seconds of the years 1 and 9999
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


class Fields:
    """An object of an export.

    A field that is missing or null counts as empty.

    Args:
        value: the object as it was parsed.
        where: file and message, for errors.
        program: name of the program that wrote it, for errors.

    Raises:
        LoraFtError: `value` is no object.
    """

    def __init__(self, value: Any, where: str, program: str) -> None:
        self.where, self._program = where, program
        if not isinstance(value, dict):
            raise self._fault("it", value, "an object")
        self._value: dict[str, Any] = value

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def named(self, *keys: str) -> Fields:
        """Return the same object, named in errors by the first of its fields that is a text or a number."""
        found = (self._value.get(key) for key in keys)
        name = next((value for value in found if isinstance(value, (str, int)) and not isinstance(value, bool)), None)
        return self if name is None else Fields(self._value, f"{self.where}, message {_short(name)}", self._program)

    def text(self, key: str) -> str:
        """Return a text, "" where there is none."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, str):
            raise self._fault(key, value, "a text")
        return value or ""

    def key(self, key: str) -> str:
        """Return an id, which may be a text or a whole number, as text; "" where there is none."""
        value = self._value.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key)

    def flag(self, key: str) -> bool:
        """Return a truth value, False where there is none."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._fault(key, value, "true or false")
        return bool(value)

    def child(self, key: str) -> Fields | None:
        """Return an object, None where there is none."""
        value = self._value.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._fault(key, value, "an object")
        return Fields(value, self.where, self._program)

    def values(self, key: str) -> list[Any]:
        """Return the elements of a list, none where there is no list."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, list):
            raise self._fault(key, value, "a list")
        return value or []

    def children(self, key: str) -> Iterator[Fields]:
        """Yield the objects of a list."""
        for value in self.values(key):
            if not isinstance(value, dict):
                raise self._fault(key, value, "a list of objects")
            yield Fields(value, self.where, self._program)

    def raw(self, key: str) -> Any:
        """Return a value of any type, None where there is none."""
        return self._value.get(key)

    def seconds(self, key: str, *, per_second: int = 1) -> float:
        """Return a count of seconds since 1970, a number or a text of digits; the field must be there.

        Args:
            key: of the field.
            per_second: units of the count, e.g. 1000 for milliseconds.
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
        """Return an ISO 8601 date as seconds since 1970; one without a zone is read as UTC."""
        value = self._value.get(key)
        try:
            date = datetime.datetime.fromisoformat(value)  # type: ignore[arg-type]  # TypeError below
            return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
        except (ValueError, TypeError, OverflowError) as error:
            raise self._dateless(key, value) from error

    def refuse(self, key: str, expected: str) -> LoraFtError:
        """Return the error of a field that is not as expected."""
        return self._fault(key, self._value.get(key), expected)

    def _fault(self, key: str, value: Any, expected: str) -> LoraFtError:
        kind = "null" if value is None else _KINDS.get(type(value), type(value).__name__)
        what = f"{self.where} is" if key == "it" else f"{self.where}: {key} is"
        return LoraFtError(
            f"{what} {kind}, not {expected} (got {_short(value)})", f"export it again from {self._program}"
        )

    def _dateless(self, key: str, value: Any) -> LoraFtError:
        return LoraFtError(
            f"{self.where}, has no date that can be read ({key}: {_short(value)})",
            f"export it again from {self._program}",
        )


def _short(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
