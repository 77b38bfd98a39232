"""Adapters of a group equal those trained alone, are independent, and resume bit-identically after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.core.errors import UsageError
from lora_ft.multi_lora.dashboard import SilentDashboard
from lora_ft.multi_lora.snapshots import Snapshots
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task, save_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.train_many import train_many
from lora_ft.training.encoder_states import EncoderStates
from lora_ft.training.plan import Plan
from lora_ft.training.trainer import Trainer
from tests.conftest import write_task
from tests.lora_ft.test_train import closeness, losses, wait_for, weights

MakeTask = Callable[..., Path]
# They differ in rank, layers, dropout, rate, schedule, decay, smoothing, seed, lengths, batch and number of rows.
DIFFERENT: list[dict[str, Any]] = [
    {"rows": 24, "lora": {"r": 4, "init_lora_weights": "eva"}, "train": {"learning_rate": 0.001}},
    {
        "rows": 41,
        "lora": {"r": 3, "lora_alpha": 9, "target_modules": "all-linear", "lora_dropout": 0.1},
        "train": {
            "learning_rate": 0.003,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.1,
            "seed": 7,
            "label_smoothing_factor": 0.1,
        },
    },
    {
        "rows": 30,
        "lora": {"preset": "default", "use_rslora": True},
        "lengths": {"source": 12, "target": 24},
        "train": {
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "warmup_ratio": 0.2,
            "learning_rate": 0.002,
        },
    },
    {
        "rows": 17,
        "lora": {
            "r": 4,
            "rank_pattern": {"q": 6},
            "alpha_pattern": {"v": 5},
            "loraplus_lr_ratio": 4.0,
            "lora_dropout": 0.3,
        },
        "train": {"max_grad_norm": 0.0, "learning_rate": 0.002, "lr_scheduler_type": "constant"},
    },
    {
        "rows": 24,
        "lora": {"target_modules": "o,wi_0,wo", "init_lora_weights": "gaussian"},
        "train": {
            "per_device_train_batch_size": 8,
            "max_grad_norm": 0.1,
            "learning_rate": 0.0005,
            "lr_scheduler_type": "polynomial",
        },
    },
]


def start(tasks: list[str], out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `lora-ft train` of several tasks in a new process."""
    command = [sys.executable, "-m", "lora_ft", "train", *tasks, "--out", str(out), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def different_tasks(make_task: MakeTask, count: int, **train: Any) -> list[Task]:
    """Return `count` tasks that differ in every setting that a group supports."""
    tasks = []
    for at, sections in enumerate(DIFFERENT[:count]):
        settings = {**sections, "train": {**sections.get("train", {}), **train}}
        tasks.append(load_task(make_task(name=f"t{at}", **settings)))
    return tasks


@pytest.mark.parametrize("count", [1, 2, 5])
def test_group_trains_the_same_adapters_as_training_alone(make_task: MakeTask, tmp_path: Path, count: int) -> None:
    tasks = different_tasks(make_task, count, max_steps=50, eval_every=25, metric_for_best_model="loss")
    grouped = train_many(tasks, tmp_path / "grouped")
    assert not grouped.failed
    for task, run in zip(tasks, grouped.runs, strict=True):
        alone = train(task, tmp_path / "alone" / task.name)
        assert closeness(weights(run), weights(alone)) < 1e-5
        assert run.metrics["best_step"] == alone.metrics["best_step"]
        assert run.task == alone.task
        assert {path.name for path in run.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
        configs = [json.loads((trained.adapter / "adapter_config.json").read_text()) for trained in (run, alone)]
        for config in configs:
            config["target_modules"].sort()
        assert configs[0] == configs[1]
        logs = [
            [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
            for trained in (run, alone)
        ]
        assert [(entry["step"], entry["epoch"]) for entry in logs[0]] == [
            (entry["step"], entry["epoch"]) for entry in logs[1]
        ]
        for key in ("loss", "learning_rate", "grad_norm", "eval_loss"):
            mine, theirs = ([entry[key] for entry in log if key in entry] for log in logs)
            if theirs or key != "grad_norm":  # transformers 4 logs none where nothing is clipped
                assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("logging_steps", [1000, 4])
def test_mean_loss_of_a_group_is_that_of_training_alone(
    make_task: MakeTask, tmp_path: Path, logging_steps: int
) -> None:
    """At 1000, training ends before the first log; at 4, the last two of six steps are not logged."""
    (task,) = different_tasks(make_task, 1, max_steps=6, logging_steps=logging_steps, metric_for_best_model="loss")
    runs = [*train_many([task], tmp_path / "grouped").runs, train(task, tmp_path / "alone")]
    grouped, alone = (json.loads((run.folder / "log.jsonl").read_text().splitlines()[-1]) for run in runs)
    assert grouped["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
    assert runs[0].metrics["train_loss"] == pytest.approx(runs[1].metrics["train_loss"], rel=1e-3)


def decoder_tasks(make_task: MakeTask, count: int, **train: Any) -> list[Task]:
    """Return tasks like `different_tasks`, whose adapters leave the encoder alone."""
    layers = ("decoder", ["EncDecAttention.k", "EncDecAttention.v"], "decoder")
    return [
        task.model_copy(update={"lora": task.lora.model_copy(update={"target_modules": targets})})
        for task, targets in zip(different_tasks(make_task, count, **train), layers, strict=False)
    ]


def test_group_of_decoder_adapters_runs_the_encoder_once_per_prompt(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = decoder_tasks(make_task, 3, max_steps=50, eval_every=25, metric_for_best_model="loss")
    read: list[EncoderStates] = []
    kept_states = EncoderStates.read
    monkeypatch.setattr(EncoderStates, "read", lambda self, batch: read.append(self) or kept_states(self, batch))
    grouped = train_many(tasks, tmp_path / "grouped")
    assert not grouped.failed and read
    monkeypatch.setattr(Plan, "keeps_states", False)
    for task, run in zip(tasks, grouped.runs, strict=True):
        assert closeness(weights(run), weights(train(task, tmp_path / "alone" / task.name))) < 1e-4


def test_rows_are_oversampled_as_in_training_alone(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(
        name="labels",
        labels="auto",
        data={"oversample": True},
        train={"max_steps": 12, "metric_for_best_model": "loss"},
    )
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i}", "answer": "no" if i % 6 else "yes"} for i in range(18)]
        (path.parent / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = load_task(path)
    grouped = train_many([task], tmp_path / "grouped").runs[0]
    alone = train(task, tmp_path / "alone")
    assert closeness(weights(grouped), weights(alone)) < 1e-5
    assert grouped.metrics["rows"] == alone.metrics["rows"] == {"train": 18, "validation": 18}


def same(a: Run, b: Run) -> bool:
    mine, theirs = weights(a), weights(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_diverged_adapter_leaves_the_group_without_changing_others(make_task: MakeTask, tmp_path: Path) -> None:
    diverging = {"learning_rate": 3e37, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    sound = load_task(make_task(name="sound", train={"metric_for_best_model": "loss", "learning_rate": 0.001}))
    broken = load_task(make_task(name="broken", train={**diverging, "metric_for_best_model": "loss"}))
    grouped = train_many([broken, sound], tmp_path / "runs")
    assert [run.task.name for run in grouped.runs] == ["sound"]
    assert "not finite" in grouped.failed["broken"]
    assert not (tmp_path / "runs" / "broken").exists()
    assert closeness(weights(grouped.runs[0]), weights(train(sound, tmp_path / "alone"))) < 1e-5


def test_failed_evaluation_ends_one_adapter_only(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = different_tasks(make_task, 2, max_steps=6)
    original = Trainer.evaluate

    def evaluate(self: Any, *args: Any, **options: Any) -> Any:
        if self.args.seed == 7:
            raise ValueError("no score")
        return original(self, *args, **options)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    grouped = train_many(tasks, tmp_path / "runs")
    assert grouped.failed == {"t1": "ValueError: no score"} and [run.task.name for run in grouped.runs] == ["t0"]


def test_adapters_stop_early_independently(make_task: MakeTask, tmp_path: Path) -> None:
    overfitting: dict[str, Any] = {
        "metric_for_best_model": "loss",
        "num_train_epochs": 40,
        "eval_every": 2,
        "early_stopping_patience": 2,
        "learning_rate": 0.03,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
    }
    early = load_task(make_task(rows=8, name="early", train=overfitting))
    longer = load_task(make_task(rows=8, name="longer", train={"max_steps": 30, "metric_for_best_model": "loss"}))
    grouped = train_many([early, longer], tmp_path / "runs")
    first, second = grouped.runs
    assert first.metrics["steps"] == first.metrics["best_step"] + 4 < 80
    assert second.metrics["steps"] == 30
    assert first.metrics["pack"]["adapters"] == 2 and 0.4 < first.metrics["pack"]["share"] < 0.6
    assert second.metrics["pack"]["adapters"] == 1


def test_tasks_that_do_not_fit_together_train_in_several_groups(make_task: MakeTask, tmp_path: Path) -> None:
    tasks = different_tasks(make_task, 3, max_steps=4)
    notes: list[str] = []
    progress = NoteRecorder(notes)
    grouped = train_many(tasks, tmp_path / "runs", group_size=2, progress=progress)
    assert [run.task.name for run in grouped.runs] == ["t0", "t1", "t2"]
    assert "3 adapters on one base in 2 groups" in notes
    assert sum(line.startswith("group ") for line in notes) == 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"t0", "t1", "t2", "report.html"}


class NoteRecorder(SilentDashboard):
    """Dashboard that records notes."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)


class Notes:
    """Plain progress display that records notes, without the rows of a dashboard."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None: ...

    def advance(self, completed: int, figures: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_path_of_a_grid_file_trains_its_tasks_and_marks_the_best(make_task: MakeTask, tmp_path: Path) -> None:
    file = make_task(train={"max_steps": 2, "metric_for_best_model": "loss"}, grid={"lora.r": [2, 4]})
    progress, out = Notes(), tmp_path / "runs"
    result = train_many(file, out, progress=progress)
    assert [run.task.name for run in result.runs] == ["tiny-r-2", "tiny-r-4"] and not result.failed
    assert result.best == json.loads((out / "grid.json").read_text())["best"] in ("tiny-r-2", "tiny-r-4")
    assert "2 adapters on one base in 1 group" in progress.notes


def test_answers_are_generated_as_in_training_alone(make_task: MakeTask, tmp_path: Path) -> None:
    tasks = different_tasks(make_task, 2, num_train_epochs=2)
    grouped = train_many(tasks, tmp_path / "runs")
    for task, run in zip(tasks, grouped.runs, strict=True):
        alone = train(task, tmp_path / "alone" / task.name)
        for mine, theirs in zip(run.metrics["evaluations"], alone.metrics["evaluations"], strict=True):
            assert mine.keys() == theirs.keys() and mine["eval_rouge1"] == theirs["eval_rouge1"]


# Long enough to be killed while training, with evaluations at different steps.
RESUMED: dict[str, Any] = {"max_steps": 40, "eval_every": 3, "metric_for_best_model": "loss"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Run]:
    """Runs of an uninterrupted group, trained once per module."""
    root = tmp_path_factory.mktemp("uninterrupted")

    def make(rows: int = 24, name: str = "tiny", **sections: Any) -> Path:
        return write_task(root, tiny_base, rows, name, **sections)

    return train_many(resumable(make), root / "runs").runs


def resumable(make_task: MakeTask, tasks_of: Callable[..., list[Task]] = different_tasks) -> list[Task]:
    """Return three tasks. The first is finished when the others are at half of their steps."""
    tasks = tasks_of(make_task, 3, **RESUMED)
    tasks[0] = tasks[0].model_copy(update={"train": tasks[0].train.model_copy(update={"max_steps": 20})})
    for task in tasks:
        save_task(task, task.data.root / "task.yaml")  # type: ignore[operator]
    return tasks


def files(tasks: list[Task]) -> list[str]:
    return [str(task.data.root / "task.yaml") for task in tasks]  # type: ignore[operator]


def snapshots(out: Path) -> list[int]:
    return [
        int(path.parent.name.removeprefix("checkpoint-"))
        for path in out.glob(f"{GROUPS_FOLDER}/1/checkpoint-*/complete")
    ]


MOMENTS: dict[str, Callable[[Path], object]] = {
    "before the first snapshot": lambda out: (out / "t1.unfinished" / "log.jsonl").exists(),
    "after a snapshot": lambda out: any(tick >= 3 for tick in snapshots(out)),
    "after an adapter has left": lambda out: (out / "t0").is_dir(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_group_resumes_bit_identically(
    moment: str, make_task: MakeTask, tmp_path: Path, uninterrupted: list[Run]
) -> None:
    tasks, out = resumable(make_task), tmp_path / "runs"
    process = start(files(tasks), out)
    wait_for(lambda: MOMENTS[moment](out), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "t1").exists()
    with pytest.raises(UsageError, match="--resume to continue"):
        train_many(tasks, out)
    grouped = train_many(tasks, out, resume=True)
    assert all(same(mine, theirs) for mine, theirs in zip(grouped.runs, uninterrupted, strict=True))
    for run in grouped.runs:
        steps = [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and len(losses(run.folder)) == run.metrics["steps"]  # no step is logged twice
    assert {path.name for path in out.iterdir()} == {"t0", "t1", "t2", "report.html"}


def test_killed_group_with_kept_encoder_states_resumes_bit_identically(make_task: MakeTask, tmp_path: Path) -> None:
    tasks, out = resumable(make_task, decoder_tasks), tmp_path / "runs"
    process = start(files(tasks), out)
    wait_for(lambda: MOMENTS["after an adapter has left"](out), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "t1").exists()
    resumed = train_many(tasks, out, resume=True).runs
    assert all(map(same, resumed, train_many(tasks, tmp_path / "whole").runs))


def test_snapshots_do_not_wait_for_the_next_evaluation(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[int] = []
    monkeypatch.setattr("lora_ft.multi_lora.group._LONGEST", 0.0)
    monkeypatch.setattr("lora_ft.multi_lora.group._OVERHEAD", 0)
    monkeypatch.setattr(Snapshots, "write", lambda self, snapshot: ticks.append(snapshot.tick))
    train_many(
        different_tasks(make_task, 1, max_steps=5, eval_every=4, metric_for_best_model="loss"), tmp_path / "runs"
    )
    assert ticks == [1, 2, 3, 4, 5]


def test_ctrl_c_saves_a_snapshot_and_prints_how_to_resume(
    make_task: MakeTask, tmp_path: Path, uninterrupted: list[Run]
) -> None:
    tasks, out = resumable(make_task), tmp_path / "runs"
    process = start(files(tasks), out)
    wait_for(lambda: (out / "t1.unfinished" / "log.jsonl").exists(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"repeat the command with --resume to continue" in errors and b"Traceback" not in errors
    grouped = train_many(tasks, out, resume=True)
    assert all(same(mine, theirs) for mine, theirs in zip(grouped.runs, uninterrupted, strict=True))


def test_resume_requires_unfinished_groups_of_the_same_tasks(make_task: MakeTask, tmp_path: Path) -> None:
    tasks, out = different_tasks(make_task, 2, max_steps=4), tmp_path / "runs"
    with pytest.raises(UsageError, match="no unfinished groups"):
        train_many(tasks, out, resume=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lora_ft.multi_lora.group.AdapterGroup.step", interrupt)
        train_many(tasks, out)
    with pytest.raises(UsageError, match="of other tasks"):
        train_many(tasks[:1], out, resume=True)
    changed = tasks[0].model_copy(update={"train": tasks[0].train.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(UsageError, match=r"of the unfinished run .* in train"):
        train_many([changed, tasks[1]], out, resume=True)
    assert len(train_many(tasks, out, overwrite=True).runs) == 2


def interrupt(self: Any) -> None:
    raise KeyboardInterrupt
