"""Columns of a row, including nested ones: `input`, `translation.en`, `answers.text`, `messages[-1].content`.

A column whose name equals the whole path takes precedence, so that names with dots or brackets stay usable. A key after
a list of objects is looked up in each of them: `answers.text` is ["Oslo"] in `{"answers": [{"text": "Oslo"}]}`. An
index after the key applies to the resulting list: `answers.text[0]` is "Oslo".

Only text, numbers and booleans are converted to text. Any other value would become the representation of a Python
object, which no file contains and no metric can score. It is refused, and the error names a path to text inside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.core.normal_form import normal_form

Short = bool | Mapping[str, "Short"]
"""True for 32-bit floats, False for other values, and for an object by key."""

ABSENT: Any = object()
"""Value of a column that is missing from a row. An empty column is None."""

_INDEX = re.compile(r"\[(-?\d{1,9})\]")
_SEPARATOR = re.compile(r"[.\[]")
_LIKELY = ("text", "content", "value", "answer", "label", "name")  # keys of text in common data sets, best first
_MAX_DIGITS = 300  # digits of an exact number; a decimal in parquet has at most 76
_SHOWN = 12  # names shown in an error


class Column:
    """A column, addressed by its name or by a path.

    Attributes:
        name: Name or path, as written.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._ends = _ends(name)

    def find(self, row: Mapping[str, Any]) -> Any:
        """Return the column's value in a row, None if a list is too short, or ABSENT if a key is missing."""
        return row[self.name] if self.name in row else _find(row, self.name, self._ends)


def is_empty(value: Any) -> bool:
    """Return True if a cell is empty: null, NaN (the null of tables), blank text, or a list of empty cells."""
    if isinstance(value, list):
        return all(map(is_empty, value))
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float | np.floating):
        return bool(math.isnan(value))
    return value is None or value is ABSENT or (isinstance(value, str) and not value.strip())


def text_of(value: Any, column: str, *, several: bool = False) -> str:
    """Return the text of a cell: text unchanged, numbers in digits, booleans as in JSON (true, false).

    Args:
        value: Content of the cell.
        column: Name of the column, for errors.
        several: True if the column may hold a list of texts and `value` is an item of it.

    Raises:
        UsageError: The cell holds something else. The error names a path to text inside it.
    """
    if isinstance(value, np.generic):
        value = shortest(float(value)) if isinstance(value, np.float32) else value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < _MAX_DIGITS:
        return format(value, "f")
    raise UsageError(f"column '{column}' holds {_kind(value)}, not text", _remedy(value, column, several))


def shortest(value: Any, short: Short = True) -> Any:
    """Return a value with the shortest numbers of the same 32-bit floats: 3.8 for 3.799999952316284.

    Args:
        value: Number, array, null, or lists and objects of them.
        short: True if its numbers are 32-bit floats, False if not, or of an object by key.
    """
    if short is False or value is None:
        return value
    if isinstance(value, Mapping):
        keys = short if isinstance(short, Mapping) else dict.fromkeys(value, short)
        return {key: shortest(item, keys.get(key, False)) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [shortest(item, short) for item in value]
    return float(str(np.float32(value)))


def short_floats(feature: Any) -> Short:
    """Return which numbers of a feature of a `datasets.Dataset`, or of all its features, are 32-bit floats."""
    if isinstance(feature, Mapping):
        return {name: short_floats(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return short_floats(feature[0])
    inner = getattr(feature, "feature", None)  # of a list
    return getattr(feature, "dtype", None) == "float32" if inner is None else short_floats(inner)


def names_of(row: Mapping[str, Any]) -> str:
    """Return the column names of a row for an error, with the keys of objects in parentheses."""
    names = []
    for name, value in row.items():
        keys = f" ({_listed(map(str, value))})" if isinstance(value, Mapping) and value else ""
        names.append(f"{name!r}{keys}" if not str(name).isprintable() else f"{name}{keys}")
    return _listed(names) or "none"


def lookalike(row: Mapping[str, Any], name: str) -> str | None:
    """Return the column of a row that looks like a missing one, or None.

    macOS writes accents as separate characters, and blanks have several widths.
    """
    return next((column for column in map(str, row) if normal_form(column) == normal_form(name)), None)


def _ends(path: str) -> list[int]:
    """Return the offsets in a path at which its first name may end, longest name first."""
    return [match.start() for match in _SEPARATOR.finditer(path)][::-1]


def _find(value: Any, path: str, ends: list[int]) -> Any:
    """Return the value at a path inside an object; `ends` are the offsets at which the first name may end."""
    if path in value:
        return value[path]
    for end in ends:
        if path[:end] in value:
            inner = _follow(value[path[:end]], path[end:])
            if inner is not ABSENT:
                return inner
    return ABSENT


def _follow(value: Any, path: str) -> Any:
    """Return the value at a path inside a value. The path is empty or starts with a dot or a bracket."""
    if not path or value is None:
        return value
    if path[0] == ".":
        if isinstance(value, Mapping):
            return _find(value, path[1:], _ends(path[1:]))
        if not isinstance(value, list):
            return ABSENT
        return _each(value, path)
    index = _INDEX.match(path)
    if index is None or not isinstance(value, list):
        return ABSENT
    place = int(index[1])
    inside = -len(value) <= place < len(value)
    return _follow(value[place], path[index.end() :]) if inside else None


def _each(items: list[Any], path: str) -> Any:
    """Return the values at a path in each item. An index in the path applies to the list of values before it."""
    ends = [len(path), *(place for place, letter in reversed([*enumerate(path)]) if letter == "[")]
    for end in ends:
        parts = [_follow(item, path[:end]) for item in items]
        if not any(part is ABSENT for part in parts):
            return parts if end == len(path) else _follow(parts, path[end:])
    return ABSENT


def _kind(value: Any) -> str:
    """Describe the value of a cell in the terms of data files."""
    if value is None:
        return "nothing"
    if isinstance(value, float | Decimal):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return f"an object (keys: {_listed(map(str, value))})"
    if isinstance(value, list):
        return "a list" if not value or not isinstance(value[0], Mapping) else "a list of objects"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    return f"a {type(value).__name__}"


def _remedy(value: Any, column: str, several: bool) -> str:
    if isinstance(value, Mapping | list):
        paths = list(_paths(value, column, several))
        if paths:
            return f"use {paths[0]}" if several else f"name the text inside: {paths[0]}"
        return "write text in the cell"
    if isinstance(value, bytes | bytearray):
        return "decode them to text when you create the file"
    if value is None or isinstance(value, float | Decimal):
        return "write text or a finite number in the cell"
    return "write it as text when you create the file, in the form that a model should read"


def _paths(value: Any, path: str, several: bool) -> Iterator[str]:
    """Yield paths to text inside a value, likeliest first."""
    if isinstance(value, Mapping):
        for key in sorted(map(str, value), key=lambda key: _LIKELY.index(key) if key in _LIKELY else len(_LIKELY)):
            yield from _paths(value.get(key), f"{path}.{key}", several)
    elif isinstance(value, list) and value:
        plain = not isinstance(value[0], Mapping | list)
        if several and plain:
            yield path
        elif several:
            yield from _paths(value[0], path, several)
        else:
            yield from _paths(value[0], f"{path}[0]", several)
    elif isinstance(value, str | int | float):
        yield path


def _listed(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
