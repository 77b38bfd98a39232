"""Progress of remote groups is shown on one dashboard, and the request to stop reaches them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lora_ft.multi_lora.dashboard import AdapterStatus
from lora_ft.multi_lora.progress_server import WAITING, GroupDashboard, ProgressActor, ProgressReport, RemoteProgress


def row(name: str, step: int, note: str = "") -> AdapterStatus:
    return AdapterStatus(name, step, 10, None, "loss", None, None, None, note)


def test_reports_between_two_collections_are_merged() -> None:
    actor = ProgressActor()
    assert not actor.report(ProgressReport(1, steps=1, notes=["began"]))
    actor.report(ProgressReport(1, steps=2, rows=[row("a", 2)]))
    actor.report(ProgressReport(2, notes=["hello"]))
    first, second = actor.collect()
    assert (first.steps, first.rows, first.notes) == (2, [row("a", 2)], ["began"])
    assert second.rows is None and second.steps is None
    assert actor.collect() == []
    actor.stop()
    assert actor.report(ProgressReport(1))


def test_remote_progress_sends_at_intervals_and_learns_when_to_stop() -> None:
    sent: list[ProgressReport] = []
    seconds = itertools.count()
    reporter = RemoteProgress(3, lambda report: sent.append(report) or len(sent) > 2, 4.0, lambda: float(next(seconds)))  # type: ignore[func-returns-value]
    reporter.note("resuming from step 5")
    reporter.stage("training", 9, 5)
    assert sent == [ProgressReport(3, steps=5, notes=["group 3: resuming from step 5"])]
    for step in range(6, 16):
        reporter.rows([row("a", step)])
        reporter.advance(step)
    assert 2 <= len(sent) <= 5
    assert all(report.rows == [row("a", report.steps or 0)] for report in sent[1:])
    assert reporter.stopping == (len(sent) > 2)


class RecordingDashboard:
    """Dashboard that records its calls."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.last: list[AdapterStatus] = []
        self.completed = 0

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
        self.stages.append((name, total))

    def advance(self, completed: int, figures: str = "") -> None:
        self.completed = completed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        self.last = list(rows)


def test_group_dashboard_shows_running_adapters_first() -> None:
    dashboard = RecordingDashboard()
    group_dashboard = GroupDashboard(
        {1: [row("a", 0, WAITING), row("b", 0, WAITING)], 2: [row("c", 0, WAITING)]}, {1: 10, 2: 20}, dashboard
    )
    assert dashboard.stages == [("training", 30)]
    group_dashboard.show([ProgressReport(2, steps=3, rows=[row("c", 3)], notes=["group 2: one adapter"])])
    assert [status.name for status in dashboard.last] == ["c", "a", "b"]
    assert dashboard.completed == 3 and dashboard.notes == ["group 2: one adapter"]
    group_dashboard.show([ProgressReport(1, steps=4, rows=[row("a", 4), row("b", 4, "finished")])])
    group_dashboard.end(1, "no space")
    group_dashboard.end(2)
    group_dashboard.show([])
    assert dashboard.completed == 30
    assert {status.name: status.note for status in dashboard.last} == {"a": "no space", "b": "finished", "c": ""}
