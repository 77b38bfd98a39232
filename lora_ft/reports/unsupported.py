"""What answers say beyond their sources, as tables to read and to correct by: names, numbers and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_ft.reports.table import Cell, Table
from lora_ft.tasks.metric_names import UNENTAILED, UNSUPPORTED

_MOST_ROWS = 30
_LONGEST = 300  # characters of an answer
_MOST_ENTITIES = 10
_Row = Mapping[str, Any]


def unsupported_tables(rows: Sequence[_Row]) -> list[Table]:
    """Return the answers with the most unsupported names and numbers, and those with the most unentailed sentences.

    A table without rows has a note that says so. There is none for a metric that was not measured.

    Args:
        rows: Lines of a predictions file.
    """
    tables = []
    if any(UNSUPPORTED in row for row in rows):
        note = " Names at the start of a sentence are not examined, and other spellings count as missing."
        table = _table(rows, UNSUPPORTED, "not in the source", "a name or number that their source lacks")
        tables.append(replace(table, note=table.note + _frequent(rows) + note))
    if any(UNENTAILED in row for row in rows):
        tables.append(_table(rows, UNENTAILED, "not entailed", "a sentence that their source does not entail"))
    return tables


def _table(rows: Sequence[_Row], key: str, column: str, meaning: str) -> Table:
    lists = [row.get(key) or [] for row in rows]
    order = sorted((at for at in range(len(rows)) if lists[at]), key=lambda at: -len(lists[at]))
    between = ", " if key == UNSUPPORTED else " "
    cells = [
        [Cell(f"row {at + 1}"), Cell(_clipped(between.join(lists[at]))), Cell(_clipped(rows[at]["output"]))]
        for at in order[:_MOST_ROWS]
    ]
    note = f"{len(order):,} of {len(rows):,} answers have {meaning}"
    note += f"; {_MOST_ROWS} are shown, the predictions file has all." if len(order) > _MOST_ROWS else "."
    return Table(column.capitalize(), ("row", column, "answer"), cells, 3, note)


def _frequent(rows: Sequence[_Row]) -> str:
    """Return a sentence about the names and numbers that several sources lack, or ""."""
    counts = Counter(entity for row in rows for entity in row.get(UNSUPPORTED) or [])
    frequent = [f"{entity} ({count:,})" for entity, count in counts.most_common(_MOST_ENTITIES) if count > 1]
    return f" In several answers: {', '.join(frequent)}." if frequent else ""


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
