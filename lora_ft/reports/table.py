"""A table that is rendered for the terminal, as Markdown and as HTML.

A `Column` computes a cell from an item, so a column is added or changed in one place. `Table.of` applies the columns to
all items. The terminal is 80 columns wide and therefore shows only the columns that have a brief heading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

NONE = "–"

Item = TypeVar("Item")


class Cell(NamedTuple):
    """A figure or text.

    Attributes:
        text: Plain text.
        hint: Further explanation, shown by HTML when the pointer rests on the cell.
        best: Emphasize the cell within its column.
    """

    text: str
    hint: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column of a table of items.

    Attributes:
        heading: Name and unit.
        cell: Returns the cell of an item.
        brief: Heading in the terminal; None leaves the column out there.
    """

    heading: str
    cell: Callable[[Item], Cell | str]
    brief: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        title: Plain text.
        columns: Headings.
        rows: Cells, one for each heading.
        words: Number of columns at the left that hold text; the others hold figures.
        note: How to read the table.
        briefs: Headings in the terminal, one for each column, None where the column is left out; empty for `columns`.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1
    note: str = ""
    briefs: Sequence[str | None] = ()

    @classmethod
    def of(
        cls, title: str, columns: Sequence[Column[Item]], items: Iterable[Item], *, words: int = 1, note: str = ""
    ) -> Table:
        """Return a table with a row for each item."""
        rows = [[_cell(column.cell(item)) for column in columns] for item in items]
        return cls(
            title, [column.heading for column in columns], rows, words, note, [column.brief for column in columns]
        )

    def filled(self) -> Table:
        """Return the table without the columns that are empty in all rows. An empty cell with a hint is not empty."""
        return self._only([i for i in range(len(self.columns)) if any(row[i] != Cell(NONE) for row in self.rows)])

    def brief(self) -> Table:
        """Return the table as the terminal shows it."""
        if not self.briefs:
            return self
        table = self._only([i for i, heading in enumerate(self.briefs) if heading is not None])
        return replace(table, columns=[heading or "" for heading in table.briefs], briefs=())

    def _only(self, columns: Sequence[int]) -> Table:
        return replace(
            self,
            columns=[self.columns[i] for i in columns],
            rows=[[row[i] for i in columns] for row in self.rows],
            words=sum(i < self.words for i in columns),
            briefs=[self.briefs[i] for i in columns] if self.briefs else (),
        )


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
