"""Protocol by which an adapter group reports the status of its adapters; the command line draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lora_ft.core.progress import Progress, Silent


@dataclass(frozen=True)
class AdapterStatus:
    """Current status of one adapter.

    Attributes:
        name: Name of its task.
        step, steps: Number of finished steps, and of all steps.
        loss: Last logged loss.
        metric, score: Metric that selects its best checkpoint, and the latest value.
        samples_per_second: Speed, counting its own rows.
        seconds_left: Estimated remaining time, in seconds.
        note: "finished", "stopped early", the reason of its failure, or "".
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


@runtime_checkable
class Dashboard(Progress, Protocol):
    """Progress display with a row for each adapter."""

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        """Show the current status of all adapters of the group."""


class SilentDashboard(Silent):
    """Dashboard without output."""

    def rows(self, rows: Sequence[AdapterStatus]) -> None: ...


class ProgressDashboard:
    """Dashboard that forwards to a plain progress display, without the rows of the adapters."""

    def __init__(self, progress: Progress) -> None:
        self.stage, self.advance, self.note = progress.stage, progress.advance, progress.note

    def rows(self, rows: Sequence[AdapterStatus]) -> None: ...


def as_dashboard(progress: Progress | None) -> Dashboard:
    """Return a progress display as a dashboard. None is silent."""
    if progress is None:
        return SilentDashboard()
    return progress if isinstance(progress, Dashboard) else ProgressDashboard(progress)
