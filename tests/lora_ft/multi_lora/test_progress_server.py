"""What groups say from afar comes to one board, and the word to stop comes back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lora_ft.multi_lora.dashboard import AdapterStatus
from lora_ft.multi_lora.progress_server import WAITING, GroupDashboard, ProgressActor, ProgressReport, RemoteProgress


def row(name: str, step: int, note: str = "") -> AdapterStatus:
    return AdapterStatus(name, step, 10, None, "loss", None, None, None, note)


def test_what_is_said_between_two_looks_is_heard_together() -> None:
    desk = ProgressActor()
    assert not desk.report(ProgressReport(1, done=1, notes=["began"]))
    desk.report(ProgressReport(1, done=2, rows=[row("a", 2)]))
    desk.report(ProgressReport(2, notes=["hello"]))
    first, second = desk.hear()
    assert (first.done, first.rows, first.notes) == (2, [row("a", 2)], ["began"])
    assert second.rows is None and second.done is None
    assert desk.hear() == []
    desk.stop()
    assert desk.report(ProgressReport(1))


def test_a_reporter_sends_now_and_then_and_learns_when_to_stop() -> None:
    sent: list[ProgressReport] = []
    seconds = itertools.count()
    reporter = RemoteProgress(3, lambda report: sent.append(report) or len(sent) > 2, 4.0, lambda: float(next(seconds)))  # type: ignore[func-returns-value]
    reporter.note("going on from step 5")
    reporter.stage("training", 9, 5)
    assert sent == [ProgressReport(3, done=5, notes=["group 3: going on from step 5"])]
    for step in range(6, 16):
        reporter.rows([row("a", step)])
        reporter.advance(step)
    assert 2 <= len(sent) <= 5
    assert all(report.rows == [row("a", report.done or 0)] for report in sent[1:])
    assert reporter.stopping == (len(sent) > 2)


class Drawn:
    """Remembers what was drawn."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.last: list[AdapterStatus] = []
        self.done = 0

    def stage(self, name: str, total: int = 0, done: int = 0) -> None:
        self.stages.append((name, total))

    def advance(self, done: int, figures: str = "") -> None:
        self.done = done

    def note(self, text: str) -> None:
        self.notes.append(text)

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        self.last = list(rows)


def test_all_groups_are_on_one_board_those_at_work_first() -> None:
    board = Drawn()
    wall = GroupDashboard(
        {1: [row("a", 0, WAITING), row("b", 0, WAITING)], 2: [row("c", 0, WAITING)]}, {1: 10, 2: 20}, board
    )
    assert board.stages == [("training", 30)]
    wall.show([ProgressReport(2, done=3, rows=[row("c", 3)], notes=["group 2: one adapter"])])
    assert [one.name for one in board.last] == ["c", "a", "b"]
    assert board.done == 3 and board.notes == ["group 2: one adapter"]
    wall.show([ProgressReport(1, done=4, rows=[row("a", 4), row("b", 4, "finished")])])
    wall.end(1, "no space")
    wall.end(2)
    wall.show([])
    assert board.done == 30
    assert {one.name: one.note for one in board.last} == {"a": "no space", "b": "finished", "c": ""}
