"""Tables and intervals in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lora_ft.core.printable import printable
from lora_ft.reports.table import Cell, Table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = None) -> str:
    """Lines of a table, without a newline at the end.

    Args:
        columns: headings, "" where there is none.
        rows: cells, as many as columns, in Markdown already.
        words: how many of the first columns are words; the others' cells then stand to the right.
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
    """An estimate (mean, low, high) as `37.7 [35.5, 40.0]`; with `sign` "+" each number has its own."""
    return f"{estimate['mean']:{sign}.1f} [{estimate['low']:{sign}.1f}, {estimate['high']:{sign}.1f}]"


def escaped(text: str) -> str:
    """Return plain text on one line of Markdown: nothing in it is markup, the end of a cell or of a line."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", without_html(text))


def without_html(text: str) -> str:
    """Return Markdown on one line in which HTML is shown as text."""
    return " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """Return a text as a code span, whatever backquotes it has (CommonMark 6.1)."""
    shown = " ".join(printable(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{edge}{shown}{edge}{fence}"
