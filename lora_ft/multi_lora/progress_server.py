"""What the packs of a cluster say while they train, gathered in one place for one screen. Light: no torch, no ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_ft.multi_lora.dashboard import AdapterStatus, Dashboard

WAITING = "waiting"


@dataclass
class ProgressReport:
    """What a pack has said since it was heard last.

    Attributes:
        pack: its number.
        done: steps of the adapter that has taken the most; None: as before.
        rows: how its adapters are; None: as before.
        notes: lines to keep.
    """

    pack: int
    done: int | None = None
    rows: Sequence[AdapterStatus] | None = None
    notes: list[str] = field(default_factory=list)

    def take(self, newer: ProgressReport) -> None:
        """Go on with what was said later."""
        self.done = self.done if newer.done is None else newer.done
        self.rows = self.rows if newer.rows is None else newer.rows
        self.notes += newer.notes


class ProgressActor:
    """Takes what packs report, hands it out to whoever draws, and tells packs when to stop."""

    def __init__(self) -> None:
        self._stopping = False
        self._reports: dict[int, ProgressReport] = {}

    def report(self, report: ProgressReport) -> bool:
        """Say something; whether to stop with a snapshot."""
        self._reports.setdefault(report.pack, ProgressReport(report.pack)).take(report)
        return self._stopping

    def hear(self) -> list[ProgressReport]:
        """What was said since the last call."""
        found, self._reports = list(self._reports.values()), {}
        return found

    def stop(self) -> None:
        """Tell all packs to stop."""
        self._stopping = True


class RemoteProgress:
    """The board of a pack that trains elsewhere. What is said at short intervals is sent together.

    Attributes:
        stopping: whether the desk said so when it was last asked.

    Args:
        pack: its number.
        send: brings a report to the desk, and its answer back.
        every: seconds between reports.
        clock: seconds.
    """

    def __init__(
        self, pack: int, send: Callable[[ProgressReport], bool], every: float, clock: Callable[[], float]
    ) -> None:
        self.stopping = False
        self._pack, self._send, self._every, self._clock = pack, send, every, clock
        self._report, self._sent = ProgressReport(pack), clock()

    def stage(self, name: str, total: int = 0, done: int = 0) -> None:
        """See `Progress.stage`."""
        self._report.take(ProgressReport(self._pack, done))
        self.flush()

    def advance(self, done: int, figures: str = "") -> None:
        """See `Progress.advance`."""
        self._report.done = done
        if self._clock() - self._sent >= self._every:
            self.flush()

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._report.notes.append(f"pack {self._pack}: {text}")

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        """See `Board.rows`; they are sent with the step they are of."""
        self._report.rows = rows

    def flush(self) -> None:
        """Send what was said."""
        self.stopping = self._send(self._report)
        self._report, self._sent = ProgressReport(self._pack), self._clock()


class GroupDashboard:
    """All packs on one board.

    Args:
        rows: of each pack before it begins, by its number.
        totals: steps of each.
        board: that they are shown on.
    """

    def __init__(
        self, rows: Mapping[int, Sequence[AdapterStatus]], totals: Mapping[int, int], board: Dashboard
    ) -> None:
        self._rows, self._totals, self._board = dict(rows), dict(totals), board
        self._done = dict.fromkeys(totals, 0)
        board.stage("training", sum(self._totals.values()))

    def show(self, reports: Sequence[ProgressReport]) -> None:
        """Draw what is new."""
        for report in reports:
            for note in report.notes:
                self._board.note(note)
            if report.rows is not None:
                self._rows[report.pack] = report.rows
            if report.done is not None:
                self._done[report.pack] = report.done
        self._board.rows(sorted((row for rows in self._rows.values() for row in rows), key=lambda row: bool(row.note)))
        self._board.advance(sum(self._done.values()))

    def end(self, pack: int, fault: str = "") -> None:
        """A pack has ended, or broke down for this reason."""
        self._done[pack] = self._totals[pack]
        if fault:
            self._rows[pack] = [
                row if row.note not in ("", WAITING) else replace(row, note=fault) for row in self._rows[pack]
            ]
