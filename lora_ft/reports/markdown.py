"""Tables and intervals in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lora_ft.core.printable import printable
from lora_ft.reports.table import Cell, Table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = None) -> str:
    """Return a table, without a newline at the end.

    Args:
        columns: Headings; "" for a column without one.
        rows: Cells in Markdown, one for each column.
        words: Number of columns at the left that hold text. All other columns are aligned to the right. None aligns
            no column.
    """
    rule = ["---" if words is None else ":--" if at < words else "--:" for at in range(len(columns))]
    head, *body = (f"| {' | '.join(row)} |" for row in (columns, *rows))
    return "\n".join([head, f"|{'|'.join(rule)}|", *body])


def render_table(content: Table) -> str:
    """Return the note, the title and the lines of a table, without a newline at the end."""
    rows = [[_cell(cell) for cell in row] for row in content.rows]
    lines = table([escaped(heading) for heading in content.columns], rows, words=content.words)
    note = f"{escaped(content.note)}\n\n" if content.note else ""
    return f"{note}### {escaped(content.title)}\n\n{lines}"


def _cell(cell: Cell) -> str:
    return f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)


def interval(estimate: Mapping[str, float], *, sign: str = "") -> str:
    """Return an estimate (mean, low, high) as `37.7 [35.5, 40.0]`; with `sign` "+", every number has its sign."""
    return f"{estimate['mean']:{sign}.1f} [{estimate['low']:{sign}.1f}, {estimate['high']:{sign}.1f}]"


def escaped(text: str) -> str:
    """Return plain text as one line of Markdown in which nothing is markup or ends a table cell."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", without_html(text))


def without_html(text: str) -> str:
    """Return Markdown as one line in which HTML is shown as text."""
    return " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """Return a text as a code span, even if it contains backquotes (CommonMark 6.1)."""
    shown = " ".join(printable(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{edge}{shown}{edge}{fence}"
