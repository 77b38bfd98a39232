"""Decisions of asynchronous successive halving, against a plain reference."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.runs.search_record import SearchRecord
from lora_ft.searching.halving import Ladder
from tests.lora_ft.searching.records import make_record, make_trial

LADDER = Ladder()


def reference(record: SearchRecord) -> int | None:
    """Return the number of the trial that ASHA promotes, written as in algorithm 2 of arXiv 1810.05834."""
    for rung in (1, 0):
        results = {trial.number: trial.scores[rung] for trial in record.trials if len(trial.scores) > rung}
        by_score = sorted(results, key=lambda number: (-results[number], number))
        candidates = by_score[: len(results) // 4]
        promoted = {trial.number for trial in record.trials if len(trial.scores) > rung + 1 or trial.state != "paused"}
        for number in candidates:
            if number not in promoted:
                return number
    return None


STANDINGS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=2), st.sampled_from(["paused", "running", "failed"])),
    max_size=25,
)


@given(STANDINGS)
def test_promotions_equal_those_of_the_reference(standings: list[tuple[list[int], str]]) -> None:
    record = make_record(*(make_trial(i, *scores, state=state) for i, (scores, state) in enumerate(standings)))
    promoted = LADDER.promotion(record)
    assert (promoted.number if promoted else None) == reference(record)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_a_smaller_loss_is_better(losses: list[int], source: random.Random) -> None:
    rising = make_record(*(make_trial(i, -loss) for i, loss in enumerate(losses)))
    falling = make_record(*(make_trial(i, loss) for i, loss in enumerate(losses)), metric="loss")
    mine, theirs = LADDER.promotion(falling), LADDER.promotion(rising)
    assert (mine and mine.number) == (theirs and theirs.number)


@pytest.mark.parametrize(("steps", "rungs"), [(96, (6, 24, 96)), (90, (5, 22, 90)), (5, (1, 2, 5)), (2, (1, 2, 2))])
def test_rungs_are_fractions_of_the_steps(steps: int, rungs: tuple[int, ...]) -> None:
    targets = [LADDER.target(make_trial(0, *[1.0] * reached, steps=steps, state="running")) for reached in range(3)]
    assert tuple(targets) == rungs


@pytest.mark.parametrize("sign", [1, -1])
def test_early_scores_do_not_count_at_later_rungs(sign: int) -> None:
    trial = make_trial(0, curve=[(5, sign * 9.0)], state="running")
    assert LADDER.is_early(trial) and LADDER.best(trial, sign) == sign * 9.0
    trial.scores, trial.curve = [sign * 9.0], [(5, sign * 9.0), (22, sign * 3.0), (44, sign * 4.0), (66, sign * 2.0)]
    assert not LADDER.is_early(trial) and LADDER.best(trial, sign) == sign * 4.0
    assert math.isnan(LADDER.best(make_trial(0, 1.0, curve=[(5, 1.0)]), sign))


def test_a_repetition_trains_to_its_end() -> None:
    assert LADDER.target(make_trial(4, repeats=1)) == 90


def test_the_last_chance_brings_enough_trials_to_the_end() -> None:
    record = make_record(*(make_trial(i, score) for i, score in enumerate((5.0, 7.0, 6.0, 4.0))), finalists=2)
    assert LADDER.promotion(record) is record.trials[1]
    record.trials[1].state = "running"
    assert LADDER.promotion(record) is None
    assert LADDER.last_chance(record) is record.trials[2]
    record.trials[2].state = "running"
    assert LADDER.last_chance(record) is None  # both places are taken


def test_failed_trials_take_no_place_at_the_end() -> None:
    record = make_record(make_trial(0, 9.0, state="failed"), make_trial(1, 5.0), make_trial(2, 4.0), finalists=1)
    assert LADDER.last_chance(record) is record.trials[1]


def test_the_last_chance_waits_for_trials_on_their_way() -> None:
    record = make_record(make_trial(0, 5.0), make_trial(1, state="running"), finalists=1)
    assert LADDER.last_chance(record) is None


def test_the_reason_is_the_rank_on_arrival() -> None:
    record = make_record(make_trial(0, 5.0), make_trial(1, 7.0, 8.0), make_trial(2, 6.0))
    assert LADDER.reason(record, record.trials[0]) == "rank 3 of 3 after 5 of 90 steps"
