"""Progress of several adapters: a table with a row for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from lora_ft.multi_lora.dashboard import AdapterStatus
from lora_ft.reports.screen import LINE_EVERY, Screen
from lora_ft.reports.terminal import distinct, shorten, table


class GroupScreen(Screen):
    """Implementation of `lora_ft.multi_lora.dashboard.Dashboard` on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._last_rows = time.monotonic()

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        """Draw the state of every adapter."""
        if self.console.is_terminal:
            room = max(self.console.height - 5, 1)
            self._live.update(Group(self._bar, status_table(rows, room)))
        elif time.monotonic() - self._last_rows > LINE_EVERY:
            self._last_rows = time.monotonic()
            names = distinct([row.name for row in rows], 20)
            for row in rows:
                self.console.print(status_line(row, names[row.name]), soft_wrap=True)

    def advance(self, completed: int, figures: str = "") -> None:
        """Move the bar on a terminal. Elsewhere, the lines of `rows` show the progress."""
        if self.console.is_terminal:
            super().advance(completed, figures)


def status_table(rows: Sequence[AdapterStatus], room: int) -> Table:
    """Return a table of at most `room` adapters, and the number of further ones."""
    statuses = table("adapter", "step", "loss", "score", "samples/s", "left", "")
    names = distinct([row.name for row in rows], 22)
    for row in rows[:room]:
        statuses.add_row(names[row.name], *_cells(row), shorten(row.note, 14))
    if len(rows) > room:
        statuses.add_row(f"and {len(rows) - room} more")
    return statuses


def status_line(row: AdapterStatus, name: str) -> str:
    """Return the state of one adapter as a line that begins with `name`."""
    step, loss, score, speed, remaining = _cells(row)
    figures = f"loss {loss}  {row.metric} {score}  {speed}/s  {remaining} left"
    return f"{name}  {step}  {row.note or figures}"


def _cells(row: AdapterStatus) -> tuple[str, str, str, str, str]:
    return (
        f"{row.step:,}/{row.steps:,}",
        "–" if row.loss is None else f"{row.loss:.3f}",
        "–" if row.score is None else f"{row.score:.3g}",
        "–" if row.samples_per_second is None else f"{row.samples_per_second:.1f}",
        "–" if row.seconds_left is None else _clock(row.seconds_left),
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
