"""Rounds without training: a full group, few steps, the best trial at the end, and budgets."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.runs.search_record import Round, SearchRecord, Trial
from lora_ft.searching.halving import Ladder
from lora_ft.searching.rounds import fill, finalists
from lora_ft.searching.trial_planner import TrialPlanner
from lora_ft.tasks.search import read_space
from tests.lora_ft.searching.records import make_record, make_trial
from tests.lora_ft.tasks.test_search import TASK

pytest.importorskip("optuna", reason="needs the extra `search`")
SPACE = read_space({"lora.r": {"low": 1, "high": 500}}, TASK)


class Planner:
    """Planner of trials of 90 steps. Ranks in `refused` are combinations that the task does not allow."""

    ladder, data = Ladder(), SimpleNamespace(task=TASK)

    def __init__(self, refused: Callable[[int], bool] = lambda rank: False) -> None:
        self.refused = refused

    def trial(self, number: int, values: dict[str, Any]) -> Trial:
        state = "failed" if self.refused(values["lora.r"]) else "waiting"
        return make_trial(number, settings=values, state=state)

    def repetition(self, trial: Trial, number: int, seed: int) -> Trial:
        return TrialPlanner.repetition(self, trial, number, seed)  # type: ignore[arg-type]


def run(record: SearchRecord, planner: Planner | None = None, noise: Callable[[Trial], float] = lambda _: 0.0) -> None:
    """Run a search in which a trial's score is its rank, plus noise that shrinks with each rung."""
    planner = planner or Planner()
    while True:
        fill(record, planner, SPACE)  # type: ignore[arg-type]
        if not (running := record.running()):
            return
        steps = min(planner.ladder.target(trial) - trial.step for trial in running)
        for trial in running:
            trial.step += steps
            if trial.step == planner.ladder.target(trial):
                trial.state = "finished" if trial.step == trial.steps else "paused"
                trial.scores.append(trial.settings["lora.r"] + noise(trial) / (1 + len(trial.scores)))
        record.rounds.append(Round([trial.number for trial in running], steps * len(running), 60.0))


@settings(max_examples=10)
@given(st.integers(1, 24), st.integers(1, 9))
def test_the_group_stays_full_until_no_trial_is_left_to_begin(trials: int, size: int) -> None:
    record = make_record(trials=trials, group_size=size)
    run(record)
    last = max(i for i, entry in enumerate(record.rounds) if trials - 1 in entry.trials)
    first = next(i for i, entry in enumerate(record.rounds) if trials - 1 in entry.trials)
    assert len(record.first_seeds) == trials and first <= last
    assert all(len(entry.trials) == size for entry in record.rounds[:first])
    assert all(len(entry.trials) <= size for entry in record.rounds)


def test_a_search_takes_three_tenths_of_the_grid_and_finds_its_best() -> None:
    record = make_record(trials=24, group_size=8)
    run(record)
    best = max(record.first_seeds, key=lambda trial: trial.settings["lora.r"])
    assert finalists(record)[0] is best
    assert record.steps <= 0.3 * 24 * 90
    assert [trial.repeats for trial in record.trials[24:]] == [trial.number for trial in finalists(record)]
    assert [trial.seed for trial in record.trials[24:]] == [43, 43]
    assert sum(len(trial.scores) >= 2 for trial in record.first_seeds) <= 24 // 4 + 2


def test_repetitions_train_beside_the_finalists_once_these_are_certain() -> None:
    record = make_record(
        make_trial(0, 5.0), make_trial(1, 6.0, 7.0, state="running"), make_trial(2, 8.0, 9.0, state="running"), trials=3
    )
    fill(record, Planner(), SPACE)  # type: ignore[arg-type]
    assert [(trial.repeats, trial.state) for trial in record.trials[3:]] == [(1, "running"), (2, "running")]


@pytest.mark.parametrize("scores", [(4.0,), (4.0, 5.0)], ids=["one may still be promoted", "one more than compared"])
def test_repetitions_wait_while_the_finalists_are_uncertain(scores: tuple[float, ...]) -> None:
    ends = [make_trial(number, 6.0, 7.0, state="running") for number in (1, 2)]
    record = make_record(make_trial(0, *scores, state="running"), *ends, trials=3)
    fill(record, Planner(), SPACE)  # type: ignore[arg-type]
    assert len(record.trials) == 3


def test_every_trial_that_stops_was_outranked() -> None:
    record = make_record(trials=20, group_size=4)
    run(record, noise=lambda trial: 300 * ((trial.number * 7) % 5 - 2))
    stopped = [trial for trial in record.first_seeds if trial.state == "paused"]
    for trial in stopped:
        rung = len(trial.scores) - 1
        scores = sorted((t.scores[rung] for t in record.first_seeds if len(t.scores) > rung), reverse=True)
        assert scores.index(trial.scores[rung]) >= max(2, len(scores) // 4)
    assert len(stopped) > 10


@pytest.mark.parametrize(("budget", "value"), [("steps", 60), ("minutes", 4.0)])
def test_no_trial_begins_after_the_budget_but_the_best_still_finish(budget: str, value: float) -> None:
    record = make_record(trials=24, group_size=4, **{budget: value})
    run(record)
    spent = 0.0
    for entry in record.rounds:
        if spent >= value:
            began = {number for earlier in record.rounds[: record.rounds.index(entry)] for number in earlier.trials}
            assert {n for n in entry.trials if record.trials[n].repeats is None} <= began
        spent += entry.steps if budget == "steps" else entry.seconds / 60
    assert 4 < len(record.first_seeds) < 24 and len(finalists(record)) == 2


def test_refused_combinations_take_no_place_in_the_group() -> None:
    record = make_record(trials=12, group_size=3)
    run(record, Planner(lambda rank: rank % 2 == 0))
    failed = {trial.number for trial in record.trials if trial.state == "failed"}
    assert failed and all(not failed & set(entry.trials) for entry in record.rounds)
    assert len(record.rounds[0].trials) == 3 and len(record.first_seeds) == 12


def test_one_seed_needs_no_repetitions() -> None:
    record = make_record(trials=3, seeds=1, finalists=1, group_size=3)
    run(record)
    assert len(record.trials) == 3 and len(finalists(record)) == 1
