"""Rows of a task that was made in Python.

Such a task has rows in place of the names of files: a list of dicts, a `datasets.Dataset` or a pandas frame. Where the
task is saved, its rows are written into files beside it, so a run can be evaluated and resumed from its folder alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "data"  # inside a run


class RowsInMemory(str):
    """Rows of a split, under the name of the file that a run keeps them in.

    Being a name, it takes the place of a file's name in a task and in what is written of one.

    Attributes:
        rows: The rows, by column.
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
        """The rows as JSON Lines. Values that JSON does not have are written as text."""
        return "".join(json.dumps(row, default=str) + "\n" for row in self.rows)

    @property
    def digest(self) -> str:
        """A digest of the rows, to tell tasks apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def rows_in_memory(value: object, split: str) -> RowsInMemory | None:
    """Return the rows that a split of a task was given in place of files; None where it names files.

    Args:
        value: Value of `data.train`, `data.validation` or `data.test`.
        split: Name of the split.
    """
    if value is None or isinstance(value, str | bytes | Path | Mapping):
        return value if isinstance(value, RowsInMemory) else None
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a pandas frame
        value = value.to_dict("records")
    if not isinstance(value, Iterable):
        return None
    rows = list(value)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    return RowsInMemory(
        f"{FOLDER}/{split}.jsonl", [{str(name): _plain(cell) for name, cell in row.items()} for row in rows]
    )


def _plain(value: Any) -> Any:
    """Return a cell as JSON has it: lists for arrays, numbers for numpy's, None for a missing value of a frame."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas, which need not be installed
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value  # numpy's arrays and numbers
    return _plain(plain) if type(plain) is not type(value) else value
