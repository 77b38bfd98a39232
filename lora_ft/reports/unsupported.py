"""Names and numbers of answers that their sources lack, as a table to read and to correct by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lora_ft.reports.table import Cell, Table
from lora_ft.tasks.metric_names import UNSUPPORTED

_MOST_ROWS = 30
_LONGEST = 300  # characters of an answer
_MOST_ENTITIES = 10


def unsupported_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the answers with the most unsupported names and numbers, or None if `entity_precision` was not measured.

    Args:
        rows: Lines of a predictions file.
    """
    if not any(UNSUPPORTED in row for row in rows):
        return None
    lists = [row.get(UNSUPPORTED) or [] for row in rows]
    order = sorted((at for at in range(len(rows)) if lists[at]), key=lambda at: -len(lists[at]))
    cells = [
        [Cell(f"row {at + 1}"), Cell(", ".join(lists[at])), Cell(_clipped(rows[at]["output"]))]
        for at in order[:_MOST_ROWS]
    ]
    counts = Counter(entity for entities in lists for entity in entities)
    note = f"{len(order):,} of {len(rows):,} answers have a name or number that their source lacks"
    note += f"; {_MOST_ROWS} are shown, the predictions file has all." if len(order) > _MOST_ROWS else "."
    if frequent := [f"{entity} ({count:,})" for entity, count in counts.most_common(_MOST_ENTITIES) if count > 1]:
        note += f" In several answers: {', '.join(frequent)}."
    note += " Names at the start of a sentence are not examined, and other spellings count as missing."
    return Table("Not in the source", ("row", "not in the source", "answer"), cells, 3, note)


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
