"""Collect the progress of a cluster's groups for one screen. This module imports neither torch nor ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_ft.multi_lora.dashboard import AdapterStatus, Dashboard

WAITING = "waiting"


@dataclass
class ProgressReport:
    """Progress of an adapter group since its last report was read.

    Attributes:
        group: Number of the group.
        steps: Maximum number of finished steps over its adapters; None if unchanged.
        rows: Status of its adapters; None if unchanged.
        notes: Lines that stay on the screen.
    """

    group: int
    steps: int | None = None
    rows: Sequence[AdapterStatus] | None = None
    notes: list[str] = field(default_factory=list)

    def merge(self, newer: ProgressReport) -> None:
        """Merge a newer report into this one."""
        self.steps = self.steps if newer.steps is None else newer.steps
        self.rows = self.rows if newer.rows is None else newer.rows
        self.notes += newer.notes


class ProgressActor:
    """Actor that collects the reports of groups for the screen, and tells groups to stop."""

    def __init__(self) -> None:
        self._stopping = False
        self._reports: dict[int, ProgressReport] = {}

    def report(self, report: ProgressReport) -> bool:
        """Add a report; return True if the group should stop with a snapshot."""
        self._reports.setdefault(report.group, ProgressReport(report.group)).merge(report)
        return self._stopping

    def collect(self) -> list[ProgressReport]:
        """Return the reports since the last call."""
        reports, self._reports = list(self._reports.values()), {}
        return reports

    def stop(self) -> None:
        """Tell all groups to stop."""
        self._stopping = True


class RemoteProgress:
    """Dashboard of an adapter group on another node. Updates within an interval are sent together.

    Attributes:
        stopping: True if the last report was answered with the request to stop.

    Args:
        group: Number of the group.
        send: Sends a report to the actor and returns its answer.
        every: Minimum time between reports, in seconds.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self, group: int, send: Callable[[ProgressReport], bool], every: float, clock: Callable[[], float]
    ) -> None:
        self.stopping = False
        self._group, self._send, self._every, self._clock = group, send, every, clock
        self._report, self._sent = ProgressReport(group), clock()

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
        """See `Progress.stage`."""
        self._report.merge(ProgressReport(self._group, completed))
        self.flush()

    def advance(self, completed: int, figures: str = "") -> None:
        """See `Progress.advance`."""
        self._report.steps = completed
        if self._clock() - self._sent >= self._every:
            self.flush()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._report.notes.append(f"group {self._group}: {text}")

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        """See `Dashboard.rows`. Rows are sent together with their step."""
        self._report.rows = rows

    def flush(self) -> None:
        """Send the pending report."""
        self.stopping = self._send(self._report)
        self._report, self._sent = ProgressReport(self._group), self._clock()


class GroupDashboard:
    """Progress of all groups on one dashboard.

    Args:
        rows: Initial status of the adapters of each group, by group number.
        totals: Number of steps of each group, by group number.
        dashboard: Dashboard that shows the groups.
    """

    def __init__(
        self, rows: Mapping[int, Sequence[AdapterStatus]], totals: Mapping[int, int], dashboard: Dashboard
    ) -> None:
        self._rows, self._totals, self._dashboard = dict(rows), dict(totals), dashboard
        self._steps = dict.fromkeys(totals, 0)
        dashboard.stage("training", sum(self._totals.values()))

    def show(self, reports: Sequence[ProgressReport]) -> None:
        """Draw the changes in the reports."""
        for report in reports:
            for note in report.notes:
                self._dashboard.note(note)
            if report.rows is not None:
                self._rows[report.group] = report.rows
            if report.steps is not None:
                self._steps[report.group] = report.steps
        self._dashboard.rows(
            sorted((row for rows in self._rows.values() for row in rows), key=lambda row: bool(row.note))
        )
        self._dashboard.advance(sum(self._steps.values()))

    def end(self, group: int, error: str = "") -> None:
        """Record that an adapter group has ended.

        Args:
            group: Number of the group.
            error: Error that ended the group, or "".
        """
        self._steps[group] = self._totals[group]
        if error:
            self._rows[group] = [
                row if row.note not in ("", WAITING) else replace(row, note=error) for row in self._rows[group]
            ]
