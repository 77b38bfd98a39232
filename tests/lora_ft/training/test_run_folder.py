"""Folder of a run: changed rows and foreign checkpoints are refused, and no two jobs share a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.runs.run import Run, working_folder
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.train_many import train_many
from tests.lora_ft.test_train import same, start, stop_at, task_file, wait_for, weights

MakeTask = Callable[..., Path]
STEPS: dict[str, Any] = {"eval_every": 3, "num_train_epochs": 2, "metric_for_best_model": "loss"}


def interrupted(task: Path, out: Path, step: int = 8) -> Path:
    """Train a task up to a step, stop, and return the folder of the unfinished run."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", stop_at(step))
        train(load_task(task), out)
    return working_folder(out)


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


APPENDED = '{"text": "t zzz", "answer": "zz"}'


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", lambda lines: [*lines, APPENDED], "train: 25 rows, was 24"),
        ("train", lambda lines: lines[:-1], "train: 23 rows, was 24"),
        ("train", lambda lines: [APPENDED, *lines[1:]], "train: 1 of 24 rows are different"),
        ("train", lambda lines: lines[::-1], "train: the same rows in another order"),
        ("validation", lambda lines: [*lines, APPENDED], "validation: 7 rows, was 6"),
        ("test", lambda lines: [*lines, APPENDED], "test: 7 rows, was 6"),
    ],
)
def test_resume_refuses_changed_rows(
    make_task: MakeTask, tmp_path: Path, split: str, change: Callable[[list[str]], list[str]], message: str
) -> None:
    task = make_task(train=STEPS)
    working = interrupted(task, tmp_path / "run")
    before = {path.name for path in working.iterdir()}
    rewrite(task.parent / f"{split}.jsonl", change)
    with pytest.raises(UsageError, match=message):
        train(load_task(task), tmp_path / "run", resume=True)
    assert {path.name for path in working.iterdir()} == before


def test_resume_reports_rows_that_moved_between_splits(make_task: MakeTask, tmp_path: Path) -> None:
    data = {"validation": None, "test": None, "split": {"validation": 0.1, "test": 0.25}}
    task = make_task(data=data, train=STEPS)
    interrupted(task, tmp_path / "run", 4)
    rewrite(task.parent / "train.jsonl", lambda lines: [*(APPENDED.replace("zzz", 5 * c) for c in "abcdefgh"), *lines])
    with pytest.raises(UsageError, match=r"trained on (is|are) now (a )?(test|validation) rows?"):
        train(load_task(task), tmp_path / "run", resume=True)


def test_resume_of_a_group_refuses_changed_rows(make_task: MakeTask, tmp_path: Path) -> None:
    paths = [make_task(name=name, train=STEPS) for name in ("one", "two")]
    tasks = [load_task(path) for path in paths]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", raise_interrupt)
        train_many(tasks, tmp_path / "runs")
    rewrite(paths[1].parent / "train.jsonl", lambda lines: [*lines, APPENDED])
    with pytest.raises(UsageError, match=r"two began with \(train: 25 rows, was 24"):
        train_many(tasks, tmp_path / "runs", resume=True)


def raise_interrupt(self: Any) -> None:
    raise KeyboardInterrupt


def test_unfinished_run_without_records_resumes(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(train=STEPS)
    working = interrupted(task, tmp_path / "run")
    (working / "claim.json").unlink()
    for mark in working.glob("checkpoint-*/complete"):
        mark.write_text("")
    assert train(load_task(task), tmp_path / "run", resume=True).metrics["resumed_at"] == 6


def test_checkpoint_of_another_run_is_ignored(make_task: MakeTask, tmp_path: Path) -> None:
    task, other_task = make_task(train=STEPS), make_task(name="other", train=STEPS | {"learning_rate": 0.02})
    working, other_working = interrupted(task, tmp_path / "run"), interrupted(other_task, tmp_path / "other", 11)
    shutil.copytree(other_working / "checkpoint-9", working / "checkpoint-9")
    run = train(load_task(task), tmp_path / "run", resume=True)
    assert run.metrics["resumed_at"] == 6
    assert same(weights(run), weights(train(load_task(task), tmp_path / "whole")))


def test_run_stops_if_another_job_takes_its_folder(make_task: MakeTask, tmp_path: Path) -> None:
    """On a file system without locks, the claim is checked before files of another run are overwritten."""
    task = load_task(make_task(train=STEPS))

    def take_over(self: Any, loss: float) -> None:
        if self.state.global_step == 4:
            claim = working_folder(tmp_path / "run") / "claim.json"
            claim.write_text(json.dumps(json.loads(claim.read_text()) | {"run": "another"}))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(LoraFtError, match="was taken over by another job"):
        patch.setattr("lora_ft.training.trainer.Trainer._guard", take_over)
        train(task, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_second_job_on_a_live_run_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    """SIGSTOP suspends the first job without ending it. The lock ends with the process."""
    task, other_task = make_task(train=STEPS), make_task(name="other", train=STEPS)
    out = tmp_path / "run"
    process = start(task, out)
    wait_for(lambda: (working_folder(out) / "checkpoint-3" / "complete").exists(), process)
    os.kill(process.pid, signal.SIGSTOP)
    for again in ([str(task), "--resume"], [str(other_task), "--overwrite"], [str(task)]):
        assert lora_ft(["train", *again, "--out", str(out)]) == 2
    with pytest.raises(UsageError, match=rf"another job is writing to .*process {process.pid}"):
        train(load_task(task), out, resume=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run = train(load_task(task), out, resume=True)
    assert same(weights(run), weights(train(load_task(task), tmp_path / "whole")))
    assert not list(tmp_path.glob(".*"))


def test_moved_run_keeps_its_best_checkpoint(make_task: MakeTask, tmp_path: Path) -> None:
    """transformers ignores a best checkpoint that does not exist, and would publish the last weights."""
    settings = {**STEPS, "num_train_epochs": 4, "save_total_limit": 1, "learning_rate": 0.03, "warmup_ratio": 0.0}
    task = make_task(rows=8, train=settings | {"eval_every": 2})
    whole = train(load_task(task), tmp_path / "whole")
    working = interrupted(task, tmp_path / "run", 5)
    working.rename(tmp_path / "moved.unfinished")
    run = train(load_task(task), tmp_path / "moved", resume=True)
    assert same(weights(run), weights(whole)) and run.metrics["best_step"] == whole.metrics["best_step"]


def test_early_stopping_counter_is_resumed(make_task: MakeTask, tmp_path: Path) -> None:
    settings = {**STEPS, "num_train_epochs": 40, "eval_every": 2, "early_stopping_patience": 3}
    overfitting = {"learning_rate": 0.03, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    task = make_task(rows=8, train=settings | overfitting)
    whole = train(load_task(task), tmp_path / "whole")
    interrupted(task, tmp_path / "run", whole.metrics["steps"] - 1)  # after the second evaluation without a gain
    run = train(load_task(task), tmp_path / "run", resume=True)
    assert run.metrics["steps"] == whole.metrics["steps"] and same(weights(run), weights(whole))


def test_run_is_written_through_a_link(make_task: MakeTask, tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "run").symlink_to("disk/run")
    run = train(load_task(make_task(train={"max_steps": 2})), tmp_path / "run")
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "run" / "adapter").is_dir()
    assert run.metrics["steps"] == 2


def test_overwrite_keeps_foreign_files(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(train={"max_steps": 2})
    for name in ("run", "other.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            train(load_task(task), tmp_path / name.removesuffix(".unfinished"), overwrite=True)
        assert (tmp_path / name / "thesis.tex").read_text() == "years"


def test_overwrite_refuses_a_run_that_contains_its_base(make_task: MakeTask, tmp_path: Path) -> None:
    first = train(load_task(make_task(train={"max_steps": 2}, method="full", lora={})), tmp_path / "run")
    task = load_task(task_file(first), [f"base={first.folder / 'checkpoint'}"])
    with pytest.raises(UsageError, match=r"contains the input .*checkpoint, so it is not replaced"):
        train(task, tmp_path / "run", overwrite=True)
    assert Run(tmp_path / "run").task == first.task


def test_run_can_be_retrained_from_its_task_file(make_task: MakeTask, tmp_path: Path) -> None:
    first = train(load_task(make_task(train={"max_steps": 2})), tmp_path / "run")
    again = train(load_task(task_file(first), ["train.seed=7"]), tmp_path / "run", overwrite=True)
    assert again.task.train.seed == 7
