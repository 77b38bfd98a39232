"""Plans of trials: their tasks, and the number that fits into memory together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.progress import Silent
from lora_ft.models.bases import find_base
from lora_ft.multi_lora.engine import TrainingSite
from lora_ft.multi_lora.planner import MemoryNeed, group_memory
from lora_ft.searching.halving import Ladder
from lora_ft.searching.trial_planner import TrialPlanner
from lora_ft.tasks.files import load_task
from lora_ft.tasks.search import read_space, with_settings
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.memory_estimates import Shape
from lora_ft.training.prepared_data import prepare

MakeTask = Callable[..., Path]


@pytest.fixture
def make_planner(make_task: MakeTask) -> Callable[..., TrialPlanner]:
    """Return a function that returns the planner of a task for a site with some memory."""

    def make(room: int = 1 << 40, **sections: Any) -> TrialPlanner:
        task = load_task(make_task(**sections))
        data = prepare(task, find_base(task.base), Silent())
        return TrialPlanner(data, TrainingSite("cpu", ComputeDtype("fp32", ""), room), Ladder())

    return make


def test_a_trial_is_the_task_with_its_values(make_planner: Callable[..., TrialPlanner]) -> None:
    planner = make_planner(train={"max_steps": 30, "seed": 5})
    small, large = (planner.trial(number, {"lora.r": 2 * number}) for number in (1, 2))
    assert (small.name, small.seed, small.steps) == ("tiny-001", 5, 30)
    assert large.parameters == 2 * small.parameters
    expected = with_settings(planner.data.task, {"lora.r": 2, "train.eval_every": 7})
    assert planner.task(small) == expected.model_copy(update={"name": "tiny-001"})
    again = planner.repetition(small, 7, 6)
    assert (again.name, again.repeats, again.state) == ("tiny-001-seed-6", 1, "waiting")
    assert planner.task(again).train.seed == 6 and planner.task(again).lora == planner.task(small).lora


def test_the_first_rung_takes_some_validation_rows(make_planner: Callable[..., TrialPlanner]) -> None:
    planner = make_planner(rows=300, data={"validation": "train.jsonl"}, train={"max_steps": 90})
    rows = planner.data.validation
    trial = planner.trial(0, {"lora.r": 2})
    early = planner.prepared(trial).validation
    assert len(rows) == 300 and early == rows[::3]
    assert planner.prepared(planner.repetition(trial, 1, 43)).validation == rows
    trial.step, trial.scores = 5, [1.0]
    assert planner.prepared(trial).validation == rows
    short = make_planner(rows=300, data={"validation": "train.jsonl"}, train={"max_steps": 3})
    assert short.prepared(short.trial(0, {"lora.r": 2})).validation == rows


def test_steps_depend_on_the_batch(make_planner: Callable[..., TrialPlanner]) -> None:
    planner = make_planner(rows=40, train={"num_train_epochs": 9})
    trials = [planner.trial(size, {"train.per_device_train_batch_size": size}) for size in (2, 8)]
    assert [(trial.steps, planner.task(trial).train.eval_every) for trial in trials] == [(180, 45), (45, 11)]


def test_a_refused_combination_is_a_failed_trial(make_planner: Callable[..., TrialPlanner]) -> None:
    trial = make_planner().trial(3, {"lora.init_lora_weights": "orthogonal", "lora.r": 3})
    assert trial.state == "failed" and "even ranks" in trial.reason
    assert "DoRA" in make_planner().trial(3, {"lora.use_dora": True}).reason


def test_as_many_of_the_largest_trials_train_together_as_fit(make_planner: Callable[..., TrialPlanner]) -> None:
    planner = make_planner()
    space = read_space(
        {"lora.r": [2, 64, 8], "train.per_device_train_batch_size": {"low": 2, "high": 16}}, planner.data.task
    )
    largest = planner.prepared(planner.trial(0, {"lora.r": 64, "train.per_device_train_batch_size": 16}))
    need = MemoryNeed.of(largest, planner.site.plan(largest))
    options = planner.site.step_options(largest.task)
    room = group_memory(Shape.of(largest.base.config), [need] * 3, options).total
    assert planner.width(space, 8) == 8
    assert make_planner(room=room).width(space, 8) == 3
    assert make_planner(room=room).width(space, 2) == 2
    assert make_planner(room=1).width(space, 8) == 1
