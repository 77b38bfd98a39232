"""Stops at the last step and during a validation: training ends soon, and a resumed run equals one without the stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.interrupts import Interrupted
from lora_ft.runs.run import RESUME, Run, working_folder
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.train_many import train_many
from lora_ft.training.resume_points import is_validated
from lora_ft.training.trainer import Trainer
from tests.lora_ft.test_train import same, validated_steps, weights

MakeTask = Callable[..., Path]
STUCK: dict[str, Any] = {"learning_rate": 1e-30, "warmup_ratio": 0.0, "early_stopping_patience": 1}


def random_task(make_task: MakeTask, name: str = "tiny", **train_section: Any) -> Task:
    """Return a task whose steps draw random numbers, and whose validations have several batches."""
    defaults = {"num_train_epochs": 3, "metric_for_best_model": "loss", "per_device_eval_batch_size": 2}
    return load_task(make_task(name=name, train=defaults | train_section, lora={"lora_dropout": 0.1}))


def require_same(run: Run, whole: Run) -> None:
    assert same(weights(run), weights(whole))
    assert validated_steps(run.folder) == validated_steps(whole.folder)
    for key in ("steps", "best_step", "best_metric"):
        assert run.metrics[key] == whole.metrics[key]


@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 8}, {"max_steps": 8, "eval_every": 3}, {"num_train_epochs": 20, "eval_every": 4} | STUCK],
    ids=["within an epoch", "between validations", "stopped early"],
)
def test_run_that_was_killed_after_its_last_step_takes_no_further_one(
    settings: dict[str, Any], make_task: MakeTask, tmp_path: Path
) -> None:
    task = random_task(make_task, **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(sys.modules["lora_ft.train"], "save_weights", lambda *_: 1 // 0)
        train(task, tmp_path / "run")
    require_same(train(task, tmp_path / "run", resume=True), train(task, tmp_path / "whole"))


class StopIn:
    """Send SIGTERM at the first batch of a validation.

    Attributes:
        batches: Number of its batches.
    """

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.batches = validations = 0
        evaluate, predict = Trainer.evaluate, Trainer.prediction_step

        def evaluated(trainer: Trainer, *args: Any, **options: Any) -> Any:
            nonlocal validations
            validations += 1
            return evaluate(trainer, *args, **options)

        def predicted(trainer: Trainer, *args: Any, **options: Any) -> Any:
            if validations == number:
                self.batches += 1
                signal.raise_signal(signal.SIGTERM)
            return predict(trainer, *args, **options)

        patch.setattr(Trainer, "evaluate", evaluated)
        patch.setattr(Trainer, "prediction_step", predicted)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 1),
        ({"eval_every": 4}, 2),
        ({"eval_every": 3, "metric_for_best_model": "rouge1"}, 2),
        ({"max_steps": 8}, 2),
        ({"eval_every": 3} | STUCK, 2),
    ],
    ids=["end of an epoch", "within an epoch", "end of a later epoch", "last step", "stopped early"],
)
def test_stop_ends_a_validation_which_the_resumed_run_repeats(
    settings: dict[str, Any], number: int, make_task: MakeTask, tmp_path: Path
) -> None:
    task = random_task(make_task, **settings)
    whole = train(task, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop = StopIn(patch, number)
        train(task, tmp_path / "run")
    assert stop.batches == 1
    step = validated_steps(whole.folder)[number - 1]
    checkpoint = working_folder(tmp_path / "run") / f"checkpoint-{step}"
    assert (checkpoint / "complete").is_file() and not is_validated(checkpoint)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=f"after step {step} "):
        again = StopIn(patch, 1)
        train(task, tmp_path / "run", resume=True)
    assert again.batches == 1
    run = train(task, tmp_path / "run", resume=True)
    require_same(run, whole)
    assert run.metrics["resumed_at"] == step
    assert all(is_validated(path) for path in (run.folder / RESUME).glob("checkpoint-*"))


@pytest.mark.parametrize(("eval_every", "at"), [("epoch", 7), ("epoch", 12), (4, 7), (4, 12)])
def test_stopped_run_leaves_its_validation_to_the_resumed_one(
    eval_every: str | int, at: int, make_task: MakeTask, tmp_path: Path
) -> None:
    """A validation may take longer than a scheduler waits before it kills, and one for a stop could choose weights."""
    task = random_task(make_task, eval_every=eval_every)
    whole = train(task, tmp_path / "whole")
    expected = validated_steps(whole.folder)
    assert expected[:2] == ([6, 12] if eval_every == "epoch" else [4, 8])

    def terminate(trainer: Any, loss: float) -> None:
        if trainer.state.global_step == at - 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", terminate)
        train(task, tmp_path / "run")
    assert validated_steps(working_folder(tmp_path / "run")) == [step for step in expected if step < at]
    run = train(task, tmp_path / "run", resume=True)
    assert run.metrics["resumed_at"] == at
    require_same(run, whole)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_stop_ends_the_validations_of_a_group_which_the_resumed_group_repeats(
    number: int, make_task: MakeTask, tmp_path: Path
) -> None:
    """The first task finishes at step 8, in validation 3, and the second at step 12, in validation 5."""
    tasks = [
        random_task(make_task, name=f"t{i}", max_steps=(8, 12)[i], eval_every=4, metric_for_best_model=metric)
        for i, metric in enumerate(("loss", "rouge1"))
    ]
    whole = train_many(tasks, tmp_path / "whole").runs
    for stopped in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="adapters unfinished"):
            stop = StopIn(patch, (number, 1)[stopped])
            train_many(tasks, tmp_path / "runs", resume=bool(stopped))
        assert stop.batches == 1
    resumed = train_many(tasks, tmp_path / "runs", resume=True).runs
    for run, expected in zip(resumed, whole, strict=True):
        require_same(run, expected)
