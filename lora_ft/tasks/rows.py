"""Rows of a task that was created in Python.

Such a task has rows instead of file names: a list of dicts, a `datasets.Dataset` or a pandas frame. When the task is
saved, its rows are written to files next to it. A run can therefore be evaluated and resumed from its folder alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_ft.core.columns import Short, short_floats, shortest

FOLDER = "data"  # inside a run


class RowsInMemory(str):
    """Rows of a split, which are also the name of the file in which a run stores them.

    Since it is a string, it can replace a file name in a task, also when the task is dumped.

    Attributes:
        rows: Rows, each with its values by column.
    """

    rows: list[dict[str, Any]]

    def __new__(cls, name: str, rows: list[dict[str, Any]]) -> RowsInMemory:
        self = super().__new__(cls, name)
        self.rows = rows
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.rows

    @property
    def text(self) -> str:
        """Rows as JSON Lines. Values of types that JSON lacks are written as text."""
        return "".join(json.dumps(row, default=str) + "\n" for row in self.rows)

    @property
    def digest(self) -> str:
        """Digest of the rows, which distinguishes tasks."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def rows_in_memory(value: Any, split: str) -> RowsInMemory | None:
    """Return the rows of a split that holds rows instead of file names; None if it holds file names.

    Args:
        value: Value of `data.train`, `data.validation` or `data.test`.
        split: Name of the split.

    Raises:
        ValueError: A frame has two columns of the same name.
    """
    if value is None or isinstance(value, str | bytes | Path | Mapping):
        return value if isinstance(value, RowsInMemory) else None
    short: Short = False
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a pandas frame
        names = list(map(str, value.columns))
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the frame has two columns named {repeated!r}; rename or remove one of them")
        short = {name: str(value[name].dtype) == "float32" for name in value.columns}
        value = value.to_dict("records")
    elif isinstance(features := getattr(value, "features", None), Mapping):  # a datasets.Dataset
        short = short_floats(features)
    if not isinstance(value, Iterable):
        return None
    rows = list(value)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    plain = [{str(name): _plain(cell) for name, cell in shortest(dict(row), short).items()} for row in rows]
    return RowsInMemory(f"{FOLDER}/{split}.jsonl", plain)


def _plain(value: Any) -> Any:
    """Return a cell as a JSON value: arrays as lists, numpy numbers as numbers, missing values of a frame as None."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if str(getattr(value, "dtype", "")).endswith("float32"):  # of an array, a tensor or a number
        return _plain(shortest(value))
    if type(value).__name__ in ("NAType", "NaTType"):  # types of pandas, which may not be installed
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value  # numpy's arrays and numbers
    return _plain(plain) if type(plain) is not type(value) else value
