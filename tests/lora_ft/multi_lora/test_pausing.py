"""Members pause at a step and continue in a group with other members, as if nothing had happened."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.progress import Silent
from lora_ft.models.bases import find_base
from lora_ft.multi_lora.dashboard import AdapterStatus, SilentDashboard
from lora_ft.multi_lora.engine import LocalEngine
from lora_ft.multi_lora.group_job import GroupJob
from lora_ft.multi_lora.resume_point import Pause
from lora_ft.runs.run import Run, is_run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.training.prepared_data import prepare
from tests.lora_ft.test_train import closeness, weights
from tests.lora_ft.test_train_many import different_tasks

MakeTask = Callable[..., Path]


class Statuses(SilentDashboard):
    """Dashboard that keeps the last status of each adapter."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def rows(self, rows: Sequence[AdapterStatus]) -> None:
        self.notes |= {row.name: row.note for row in rows}


@pytest.fixture
def train_group(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return a function that trains one group below `tmp_path` and returns the last note of each task."""
    engine, numbers = LocalEngine(), itertools.count(1)

    def run(tasks: Sequence[Task], resumed: set[str], pauses: Mapping[str, Pause]) -> dict[str, str]:
        statuses = Statuses()
        site = engine.inspect(tmp_path, "fp32", None, statuses)
        data = [prepare(task, find_base(task.base), Silent()) for task in tasks]
        plans = {entry.task.name: site.plan(entry) for entry in data}
        job = GroupJob(next(numbers), data, plans, tmp_path / "runs", "id", frozenset(resumed), pauses)
        assert engine.run([job], site, statuses).failed == {}
        return statuses.notes

    return run


def test_members_leave_and_join_between_groups(
    make_task: MakeTask, tmp_path: Path, train_group: Callable[..., dict[str, str]]
) -> None:
    settings: dict[str, Any] = {
        "max_steps": 12,
        "eval_every": 4,
        "logging_steps": 3,
        "metric_for_best_model": "loss",
    }
    first, second, third = different_tasks(make_task, 3, early_stopping_patience=9, **settings)
    assert train_group([first, second], set(), {"t0": Pause(4), "t1": Pause(5)}) == {"t0": "paused", "t1": "paused"}
    assert not is_run(tmp_path / "runs" / "t0")
    assert train_group([second, third], {"t1"}, {"t1": Pause(9)}) == {"t1": "paused", "t2": "finished"}
    kept = {path.name for path in (tmp_path / "runs" / "t1.unfinished").glob("checkpoint-*")}
    assert "checkpoint-9" in kept and len(kept) <= 2  # the state and the best weights
    assert set(train_group([first, second], {"t0", "t1"}, {}).values()) == {"finished"}
    for task in (first, second, third):
        run, alone = Run(tmp_path / "runs" / task.name), train(task, tmp_path / "alone" / task.name)
        assert closeness(weights(run), weights(alone)) < 1e-5
        assert run.metrics["best_step"] == alone.metrics["best_step"] and run.metrics["steps"] == 12
        logs = [[json.loads(line) for line in (r.folder / "log.jsonl").read_text().splitlines()] for r in (run, alone)]
        for key in ("learning_rate", "loss", "train_loss", "eval_loss"):
            mine, theirs = ([entry[key] for entry in log if key in entry] for log in logs)
            assert mine == pytest.approx(theirs, rel=1e-3)


def test_patience_is_kept_while_paused_and_scores_at_a_pause_do_not_count(
    make_task: MakeTask, tmp_path: Path, train_group: Callable[..., dict[str, str]]
) -> None:
    overfitting = {"num_train_epochs": 40, "learning_rate": 0.03, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    patience = {"eval_every": 2, "early_stopping_patience": 2, "metric_for_best_model": "loss"}
    task = load_task(make_task(rows=8, name="early", train=overfitting | patience))
    best = train(task, tmp_path / "alone").metrics["best_step"]
    assert train_group([task], set(), {"early": Pause(best + 1, is_scored=True)}) == {"early": "paused"}
    assert train_group([task], {"early"}, {"early": Pause(best + 3, is_scored=True)}) == {"early": "paused"}
    assert train_group([task], {"early"}, {}) == {"early": "stopped early"}
    assert Run(tmp_path / "runs" / "early").metrics["steps"] == best + 4
    entries = [json.loads(line) for line in (tmp_path / "runs" / "early" / "log.jsonl").read_text().splitlines()]
    scored = [entry["step"] for entry in entries if "eval_loss" in entry]
    assert scored == [*range(2, best + 1, 2), best + 1, best + 2, best + 3, best + 4]
