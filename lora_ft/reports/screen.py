"""Progress on stderr: a live bar and a line of figures in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lora_ft.core.distributed import rank
from lora_ft.reports.terminal import Console

LINE_EVERY = 30.0  # seconds between lines without a terminal


class Screen:
    """Implementation of `lora_ft.core.progress.Progress` on stderr. Use it as a context manager around the job.

    Args:
        quiet: Show nothing. In a distributed job, only the process of rank 0 shows anything.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet or rank() != 0)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._figures = Text("")
        self._live = Live(Group(self._bar, self._figures), console=self.console, refresh_per_second=4, transient=True)
        self._task: TaskID | None = None
        self._name, self._total, self._last_line = "", 0, 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
        """Begin a stage of `total` steps, the first `completed` of which are complete."""
        self._name, self._total, self._last_line = name, total, time.monotonic()
        if not self.console.is_terminal:
            self.console.print(name if not total else f"{name}: {total:,}", soft_wrap=True)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._figures.plain = ""
        self._task = self._bar.add_task(name, total=total or None, completed=completed)

    def advance(self, completed: int, figures: str = "") -> None:
        """Set the number of completed steps, and the line of figures."""
        if self._task is not None:
            self._bar.update(self._task, completed=completed)
            self._figures.plain = figures
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            self.console.print(f"{self._name}: {completed:,} of {self._total:,}  {figures}".rstrip(), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self.console.print(text, soft_wrap=not self.console.is_terminal)
