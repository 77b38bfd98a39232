"""Finished runs of a group train longer, together or alone, with the same result as without the stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import Run, working_folder
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.train_many import train_many
from lora_ft.training.trainer import Trainer
from tests.lora_ft.test_train import closeness, losses, wait_for, weights
from tests.lora_ft.test_train_many import NoteRecorder, different_tasks, files, interrupt, same, snapshots, start
from tests.lora_ft.training.test_run_folder import APPENDED, rewrite

MakeTask = Callable[..., Path]
# With a constant rate, a run trained longer equals an uninterrupted run. Its 6 steps end within an epoch, at an
# evaluation, which draws a random number.
CONSTANT: dict[str, Any] = {
    "max_steps": 6,
    "eval_every": 3,
    "metric_for_best_model": "loss",
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
}


def extended(tasks: list[Task], steps: int) -> list[Task]:
    return [task.model_copy(update={"train": task.train.model_copy(update={"max_steps": steps})}) for task in tasks]


def log_of(run: Run, key: str) -> dict[int, float]:
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[key] for entry in entries if key in entry}


@pytest.fixture
def tasks(make_task: MakeTask) -> list[Task]:
    """Return two tasks that differ in rank, layers, dropout, LoRA+, clipping and number of rows."""
    return different_tasks(make_task, 4, **CONSTANT)[1::2]


def test_group_trains_longer_bit_identically(tasks: list[Task], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    train_many(tasks, out)
    notes: list[str] = []
    longer = train_many(extended(tasks, 12), out, resume=True, progress=NoteRecorder(notes))
    whole = train_many(extended(tasks, 12), tmp_path / "whole")
    for mine, theirs in zip(longer.runs, whole.runs, strict=True):
        assert same(mine, theirs) and losses(mine.folder) == losses(theirs.folder)
        assert mine.metrics["steps"] == 12 and mine.metrics["resumed_at"] == 6
        assert mine.metrics["best_step"] == theirs.metrics["best_step"]
        assert mine.task.train.max_steps == 12
        assert f"{mine.task.name}: the finished run took 6 steps; the constant schedule now spans 12 steps" in (
            "\n".join(notes)
        )
    assert {path.name for path in out.iterdir()} == {*(task.name for task in tasks), "report.html"}
    again = train_many(extended(tasks, 15), out, resume=True)
    assert [run.metrics["resumed_at"] for run in again.runs] == [12, 12]


def test_run_of_a_group_trains_longer_alone(tasks: list[Task], tmp_path: Path) -> None:
    train_many(tasks, tmp_path / "runs")
    for task in extended(tasks, 12):
        longer = train(task, tmp_path / "runs" / task.name, resume=True)
        whole = train(task, tmp_path / "whole" / task.name)
        assert closeness(weights(longer), weights(whole)) < 1e-5
        assert losses(longer.folder) == pytest.approx(losses(whole.folder), rel=1e-3)
        assert longer.metrics["best_step"] == whole.metrics["best_step"] and longer.metrics["resumed_at"] == 6


def test_runs_trained_alone_train_longer_in_a_group(tasks: list[Task], tmp_path: Path) -> None:
    for task in tasks:
        train(task, tmp_path / "runs" / task.name)
    longer = train_many(extended(tasks, 12), tmp_path / "runs", resume=True)
    whole = train_many(extended(tasks, 12), tmp_path / "whole")
    for mine, theirs in zip(longer.runs, whole.runs, strict=True):
        assert closeness(weights(mine), weights(theirs)) < 1e-5
        assert mine.metrics["best_step"] == theirs.metrics["best_step"]


@pytest.mark.parametrize("alone", [True, False])
def test_learning_rate_follows_the_schedule_over_all_steps(make_task: MakeTask, tmp_path: Path, alone: bool) -> None:
    tasks = different_tasks(
        make_task,
        1,
        max_steps=10,
        lr_scheduler_type="linear",
        warmup_ratio=0.0,
        learning_rate=0.01,
        metric_for_best_model="loss",
    )
    train_many(tasks, tmp_path / "runs")
    if alone:
        run = train(*extended(tasks, 20), tmp_path / "runs" / "t0", resume=True)
    else:
        run = train_many(extended(tasks, 20), tmp_path / "runs", resume=True).runs[0]
    rates = log_of(run, "learning_rate")
    assert rates[10] == pytest.approx(0.01 * 1 / 10) and rates[11] == pytest.approx(0.01 * 10 / 20)
    assert rates[20] == pytest.approx(0.01 * 1 / 20)


def test_earlier_best_weights_are_published_if_no_score_improves(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"eval_loss": 1.0 + self.state.global_step})
    tasks = different_tasks(make_task, 1, **CONSTANT)
    first = train_many(tasks, tmp_path / "runs").runs[0]
    before = weights(first)
    longer = train_many(extended(tasks, 9), tmp_path / "runs", resume=True).runs[0]
    assert first.metrics["best_step"] == longer.metrics["best_step"] == 3 and longer.metrics["steps"] == 9
    assert closeness(weights(longer), before) == 0
    names = {path.name for path in (longer.folder / "resume").iterdir()}
    assert {"checkpoint-3", "checkpoint-9"} <= names


@pytest.mark.parametrize("tick", [0, 3], ids=["before the first snapshot", "after a snapshot"])
def test_group_killed_while_training_longer_resumes_bit_identically(
    tasks: list[Task], tmp_path: Path, tick: int
) -> None:
    out, longer = tmp_path / "runs", extended(tasks, 15)
    train_many(tasks, out)
    process = start(files(tasks), out, "--resume", "--set", "train.max_steps=15")
    began = out / "t1.unfinished" / "choices.json"
    wait_for(lambda: any(tick_saved >= tick for tick_saved in snapshots(out)) if tick else began.exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [Run(out / task.name).metrics["steps"] for task in tasks] == [6, 6]
    grouped = train_many(longer, out, resume=True)
    whole = train_many(longer, tmp_path / "whole")
    assert all(same(mine, theirs) for mine, theirs in zip(grouped.runs, whole.runs, strict=True))
    assert all(losses(a.folder) == losses(b.folder) for a, b in zip(grouped.runs, whole.runs, strict=True))
    assert {path.name for path in out.iterdir()} == {*(task.name for task in tasks), "report.html"}


def test_run_trains_longer_after_a_kill_within_a_write(tasks: list[Task], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    first = train_many(tasks, out).runs[0]
    unfinished = working_folder(first.folder)
    unfinished.mkdir()
    (unfinished / ".task.yaml.27486-c6bf699b.partial").write_text("half")
    longer = train_many(extended(tasks, 12), out, resume=True)
    assert [run.metrics["steps"] for run in longer.runs] == [12, 12]
    assert {path.name for path in out.iterdir()} == {*(task.name for task in tasks), "report.html"}


@pytest.mark.parametrize(
    ("module", "name"), [("lora_ft.train_many", "write_json"), ("lora_ft.multi_lora.group", "publish")]
)
def test_group_killed_at_its_start_or_end_loses_no_run(
    tasks: list[Task], tmp_path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, longer = tmp_path / "runs", extended(tasks, 9)
    train_many(tasks, out)

    def killed(path: object, *_: Any) -> None:
        if not str(path).endswith(".json") or str(path).endswith("packs.json"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules[module], name, killed)
        train_many(longer, out, resume=True)
    assert [Run(out / task.name).metrics["steps"] for task in tasks] == [6, 6]
    grouped = train_many(longer, out, resume=True)
    whole = train_many(longer, tmp_path / "whole")
    assert all(same(mine, theirs) for mine, theirs in zip(grouped.runs, whole.runs, strict=True))


def test_early_stopping_counts_from_zero_in_a_longer_group(make_task: MakeTask, tmp_path: Path) -> None:
    early = CONSTANT | {"max_steps": 60, "eval_every": 2, "learning_rate": 0.03, "early_stopping_patience": 2}
    tasks = different_tasks(make_task, 1, **early)
    first = train_many(tasks, tmp_path / "runs").runs[0]
    stopped = first.metrics["steps"]
    assert stopped < 60
    alone = shutil.copytree(first.folder, tmp_path / "alone")
    grouped = train_many(tasks, tmp_path / "runs", resume=True).runs[0]
    single = train(tasks[0], alone, resume=True)
    assert grouped.metrics["steps"] == single.metrics["steps"] >= stopped + 4


def test_training_longer_refuses_other_changes(tasks: list[Task], tmp_path: Path) -> None:
    out, more = tmp_path / "runs", extended(tasks, 12)
    with pytest.raises(UsageError, match="no unfinished groups"):
        train_many(more, out, resume=True)
    train_many(tasks, out)
    before = {path.name for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"t1 is finished, with 6 of 6 steps; raise train\.num_train_epochs"):
        train_many(tasks, out, resume=True)
    changed = more[1].model_copy(update={"lora": more[1].lora.model_copy(update={"r": 2})})
    with pytest.raises(UsageError, match=r"t3 in lora; change only"):
        train_many([more[0], changed], out, resume=True)
    missing = more[0].model_copy(update={"name": "t9"})
    with pytest.raises(UsageError, match=r"the task 't9' has no finished run .*t9 to train longer; leave it out"):
        train_many([*more, missing], out, resume=True)
    rewrite(tasks[1].data.root / "train.jsonl", lambda lines: [*lines, APPENDED])  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"t3 began with \(train: 18 rows, was 17"):
        train_many(more, out, resume=True)
    shutil.rmtree(out / "t1" / "resume")
    with pytest.raises(UsageError, match=r"cannot be trained longer, since its folder .*resume is missing"):
        train_many(more, out, resume=True)
    assert {path.name for path in out.iterdir()} == before


def test_damaged_state_is_named(tasks: list[Task], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    train_many(tasks[:1], out)
    path = out / "t1" / "resume" / "checkpoint-6" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LoraFtError, match="checkpoint-6 is damaged"):
        train_many(extended(tasks[:1], 12), out, resume=True)


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}], ids=["resume", "overwrite", "new"])
@pytest.mark.parametrize("longer", [False, True])
def test_unfinished_member_cannot_train_alone(
    tasks: list[Task], tmp_path: Path, longer: bool, options: dict[str, bool]
) -> None:
    out = tmp_path / "runs"
    if longer:
        train_many(tasks, out)
    more = extended(tasks, 12)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", interrupt)
        train_many(more, out, resume=longer)
    (out / "t1.unfinished" / "checkpoint-3").mkdir(exist_ok=True)  # the best weights so far, which carry no mark
    before = sorted(out.rglob("*"))
    group = r"t1 belongs to an unfinished adapter group of 2 tasks \(t1, t3\); continue all of them: "
    group += rf"lora-ft train TASK … --out {out} --resume"
    with pytest.raises(UsageError, match=rf"{group}|already exists" if longer and not options else group):
        train(more[0], out / "t1", **options)
    assert sorted(out.rglob("*")) == before


def test_killed_group_resumes_with_the_same_tasks_only(tasks: list[Task], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    train_many(tasks, out)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", interrupt)
        train_many(extended(tasks, 12), out, resume=True)
    assert (out / GROUPS_FOLDER).is_dir() and working_folder(out / "t1").is_dir()
    with pytest.raises(UsageError, match=r"of the unfinished run .* in train"):
        train_many(extended(tasks, 30), out, resume=True)
    assert [run.metrics["steps"] for run in train_many(extended(tasks, 12), out, resume=True).runs] == [12, 12]
