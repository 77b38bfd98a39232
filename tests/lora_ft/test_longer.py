"""A finished run trains longer from its last state, with the schedule and the best checkpoint over all steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_ft.core.errors import UsageError
from lora_ft.runs.run import Run, working_folder
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.lora_ft.test_train import losses, same, start, stop_at, wait_for, weights
from tests.lora_ft.training.test_run_folder import APPENDED, rewrite

MakeTask = Callable[..., Path]
RANDOM: dict[str, Any] = {
    "eval_every": 3,
    "num_train_epochs": 2,
    "base_dropout": 0.1,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "metric_for_best_model": "loss",
}
FOUR = ["train.num_train_epochs=4"]


def logged(run: Run, key: str) -> dict[int, float]:
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[key] for entry in entries if key in entry}


def test_longer_run_at_a_constant_rate_equals_an_uninterrupted_run(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(train=RANDOM, lora={"lora_dropout": 0.1})
    train(load_task(task), tmp_path / "run")
    longer = train(load_task(task, FOUR), tmp_path / "run", resume=True)
    whole = train(load_task(task, FOUR), tmp_path / "whole")
    assert same(weights(longer), weights(whole)) and losses(longer.folder) == losses(whole.folder)
    assert longer.metrics["steps"] == 24 and longer.metrics["resumed_at"] == 12
    assert longer.metrics["best_step"] == whole.metrics["best_step"]
    assert longer.task.train.num_train_epochs == 4 and not working_folder(longer.folder).exists()


def test_learning_rate_follows_the_schedule_over_all_steps(make_task: MakeTask, tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "learning_rate": 0.01, "warmup_ratio": 0.0, "lr_scheduler_type": "linear"}
    task = make_task(train=settings)
    train(load_task(task), tmp_path / "run")
    rates = logged(train(load_task(task, FOUR), tmp_path / "run", resume=True), "learning_rate")
    assert rates[12] == pytest.approx(0.01 * 1 / 12) and rates[13] == pytest.approx(0.01 * 12 / 24)
    assert rates[24] == pytest.approx(0.01 * 1 / 24)


def test_earlier_best_checkpoint_is_kept_if_no_score_improves(make_task: MakeTask, tmp_path: Path) -> None:
    overfitting = {"learning_rate": 0.03, "num_train_epochs": 20, "eval_every": 2, "save_total_limit": 1}
    task = make_task(rows=8, train=RANDOM | overfitting | {"base_dropout": 0.0})
    first = train(load_task(task), tmp_path / "run")
    before, best = weights(first), first.metrics["best_step"]
    assert best < first.metrics["steps"]
    longer = train(load_task(task, ["train.num_train_epochs=24"]), tmp_path / "run", resume=True)
    if longer.metrics["best_step"] != best:  # on transformers 4 the added steps find a better one
        assert longer.metrics["best_step"] > first.metrics["steps"] and not same(weights(longer), before)
    else:
        assert same(weights(longer), before)


def test_longer_run_can_be_interrupted_killed_and_trained_longer_again(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(train=RANDOM)
    out = tmp_path / "run"
    train(load_task(task), out)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", stop_at(16))
        train(load_task(task, FOUR), out, resume=True)
    assert Run(out).metrics["steps"] == 12  # the finished run stays until the longer one is finished
    assert train(load_task(task, FOUR), out, resume=True).metrics["resumed_at"] == 15
    six = train(load_task(task, ["train.num_train_epochs=6"]), out, resume=True)
    assert same(weights(six), weights(train(load_task(task, ["train.num_train_epochs=6"]), tmp_path / "whole")))


def trained_longer_killed_and_not(task: Path, overrides: list[str], tmp_path: Path) -> tuple[Run, Run]:
    """Train a finished run longer twice, once killed in the second added step, before its first new checkpoint."""
    first = train(load_task(task), tmp_path / "run")
    shutil.copytree(first.folder, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", stop_at(first.metrics["steps"] + 1))
        train(load_task(task, overrides), tmp_path / "run", resume=True)
    killed = train(load_task(task, overrides), tmp_path / "run", resume=True)
    assert killed.metrics["resumed_at"] == first.metrics["steps"]
    return killed, train(load_task(task, overrides), tmp_path / "copy", resume=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_run_killed_before_its_first_new_checkpoint_follows_the_new_schedule(
    make_task: MakeTask, tmp_path: Path, schedule: str
) -> None:
    task = make_task(train=RANDOM | {"lr_scheduler_type": schedule})
    killed, whole = trained_longer_killed_and_not(task, FOUR, tmp_path)
    assert logged(killed, "learning_rate") == logged(whole, "learning_rate")
    assert same(weights(killed), weights(whole)) and losses(killed.folder) == losses(whole.folder)


def test_run_killed_before_its_first_new_checkpoint_keeps_its_patience(make_task: MakeTask, tmp_path: Path) -> None:
    early = {"num_train_epochs": 20, "eval_every": 2, "learning_rate": 0.03, "early_stopping_patience": 2}
    killed, whole = trained_longer_killed_and_not(make_task(rows=8, train=RANDOM | early), [], tmp_path)
    assert killed.metrics["steps"] == whole.metrics["steps"] < killed.metrics["resumed_at"] + 20
    assert same(weights(killed), weights(whole)) and killed.metrics["best_step"] == whole.metrics["best_step"]


@pytest.mark.parametrize("moment", ["sync_tree", "replace_folder"])
def test_run_killed_while_publishing_loses_no_step(make_task: MakeTask, tmp_path: Path, moment: str) -> None:
    task = load_task(make_task(train=RANDOM))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"lora_ft.training.run_folder.{moment}", killed)
        train(task, tmp_path / "run")
    run = train(task, tmp_path / "run", resume=True)
    assert run.metrics["resumed_at"] == 12
    assert same(weights(run), weights(train(task, tmp_path / "whole")))


@pytest.mark.parametrize("start", ["pissa", "eva"])
def test_adapters_with_other_initial_weights_train_longer(make_task: MakeTask, tmp_path: Path, start: str) -> None:
    task = make_task(train=RANDOM, lora={"init_lora_weights": start})
    train(load_task(task), tmp_path / "run")
    longer = train(load_task(task, FOUR), tmp_path / "run", resume=True)
    whole = train(load_task(task, FOUR), tmp_path / "whole")
    mine, theirs = weights(longer), weights(whole)
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)


def test_training_longer_refuses_other_changes(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(train=RANDOM)
    out = tmp_path / "run"
    train(load_task(task), out)
    for overrides, message in [
        ([], r"is finished, with 12 of 12 steps; raise train\.num_train_epochs"),
        (["train.num_train_epochs=1"], "is finished, with 12 of 6 steps"),
        (["train.max_steps=12"], "is finished, with 12 of 12 steps"),
        ([*FOUR, "train.learning_rate=0.5"], "of the finished run .* in train; change only"),
        ([*FOUR, "lora.r=4"], "of the finished run .* in lora"),
    ]:
        with pytest.raises(UsageError, match=message):
            train(load_task(task, overrides), out, resume=True)
    rewrite(task.parent / "train.jsonl", lambda lines: [*lines, APPENDED])
    with pytest.raises(UsageError, match=r"run began with \(train: 25 rows, was 24"):
        train(load_task(task, FOUR), out, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "task-tiny"}


WHOLE: dict[str, Any] = {"method": "full", "lora": {}, "train": RANDOM}


def model_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.trained / "model.safetensors")


def test_full_run_trains_longer_bit_identically(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(**WHOLE)
    train(load_task(task), tmp_path / "run")
    longer = train(load_task(task, FOUR), tmp_path / "run", resume=True)
    whole = train(load_task(task, FOUR), tmp_path / "whole")
    assert same(model_weights(longer), model_weights(whole)) and losses(longer.folder) == losses(whole.folder)
    assert longer.metrics["resumed_at"] == 12 and longer.metrics["best_step"] == whole.metrics["best_step"]
    assert {path.name for path in longer.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_full_run_keeps_its_weights_and_two_moments(make_task: MakeTask, tmp_path: Path) -> None:
    run = train(load_task(make_task(**WHOLE)), tmp_path / "run")
    model = (run.trained / "model.safetensors").stat().st_size
    names = sum(path.stat().st_size for path in (run.folder / "resume").rglob("*") if path.is_file())
    assert names < 4.2 * model  # the best weights, too, if they are not the last
    assert not list((run.folder / "resume").rglob("training_args.bin"))


def test_full_run_killed_while_training_longer_loses_no_step(make_task: MakeTask, tmp_path: Path) -> None:
    task, out = make_task(**WHOLE), tmp_path / "run"
    train(load_task(task), out)
    process = start(task, out, "--resume", "--set", FOUR[0])
    wait_for(lambda: (tmp_path / "run.unfinished" / "checkpoint-15" / "complete").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert Run(out).metrics["steps"] == 12
    longer = train(load_task(task, FOUR), out, resume=True)
    assert same(model_weights(longer), model_weights(train(load_task(task, FOUR), tmp_path / "whole")))


def test_full_run_refuses_to_train_longer_on_changed_rows(make_task: MakeTask, tmp_path: Path) -> None:
    task, out = make_task(**WHOLE), tmp_path / "run"
    train(load_task(task), out)
    rewrite(task.parent / "train.jsonl", lambda lines: [*lines, APPENDED])
    with pytest.raises(UsageError, match=r"run began with \(train: 25 rows, was 24"):
        train(load_task(task, FOUR), out, resume=True)


@pytest.mark.parametrize("sections", [{"train": RANDOM}, WHOLE], ids=["adapter", "whole"])
def test_missing_state_is_named(make_task: MakeTask, tmp_path: Path, sections: dict[str, Any]) -> None:
    task, out = make_task(**sections), tmp_path / "run"
    train(load_task(task), out)
    shutil.rmtree(out / "resume")
    with pytest.raises(UsageError, match=r"cannot be trained longer, since its folder .*resume is missing"):
        train(load_task(task, FOUR), out, resume=True)


def test_kept_state_is_small_and_has_no_pickled_arguments(make_task: MakeTask, tmp_path: Path) -> None:
    run = train(load_task(make_task(train=RANDOM)), tmp_path / "run")
    names = {path.name for path in (run.folder / "resume").iterdir()}
    assert "checkpoint-12" in names and len(names) <= 2
    assert not list((run.folder / "resume").rglob("training_args.bin"))
