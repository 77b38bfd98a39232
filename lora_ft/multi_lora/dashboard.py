"""Protocol by which an adapter group reports the status of its adapters; the command line draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lora_ft.core.progress import Progress, Silent


@dataclass(frozen=True)
class AdapterStatus:
    """One adapter now.

    Attributes:
        name: of its task.
        step, steps: done, and of how many.
        loss: logged last.
        metric, score: what chooses its checkpoint, and its latest value.
        samples_per_second, seconds_left: of its own rows.
        note: "finished", "stopped early", why it failed, or "".
    """

    name: str
    step: int
    steps: int
    loss: float | None
    metric: str
    score: float | None
    samples_per_second: float | None
    seconds_left: float | None
    note: str


class Dashboard(Progress, Protocol):
    """A progress display with a row for each adapter."""

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        """Show the current status of all adapters of the group."""


class SilentDashboard(Silent):
    """Dashboard without output."""

    def rows(self, rows: Sequence[AdapterStatus]) -> None: ...
