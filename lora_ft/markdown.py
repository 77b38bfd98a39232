"""Tables and intervals in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


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


def interval(estimate: Mapping[str, float], *, sign: str = "") -> str:
    """An estimate (mean, low, high) as `37.7 [35.5, 40.0]`; with `sign` "+" each number has its own."""
    return f"{estimate['mean']:{sign}.1f} [{estimate['low']:{sign}.1f}, {estimate['high']:{sign}.1f}]"
