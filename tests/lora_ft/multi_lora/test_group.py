"""Groups on packed rows train the same adapters as training alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ft.multi_lora import group, joint_batches
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.train_many import train_many
from tests.lora_ft.test_train import closeness, weights
from tests.lora_ft.test_train_many import decoder_tasks, different_tasks

MakeTask = Callable[..., Path]


@pytest.mark.parametrize("make_tasks", [different_tasks, decoder_tasks])
def test_packed_group_trains_the_same_adapters_as_training_alone(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tasks: Callable[..., list[Task]]
) -> None:
    packed: list[int] = []
    real_pack = joint_batches.pack
    monkeypatch.setattr(group, "pack", lambda shares: packed.append(len(shares)) or real_pack(shares))
    tasks = [
        task.model_copy(update={"lora": task.lora.model_copy(update={"lora_dropout": 0.0})})
        for task in make_tasks(
            make_task, 3, precision="bf16", max_steps=12, eval_every=12, metric_for_best_model="loss"
        )
    ]
    grouped = train_many(tasks, tmp_path / "grouped")
    assert not grouped.failed and 3 in packed
    for task, run in zip(tasks, grouped.runs, strict=True):
        alone = train(task, tmp_path / "alone" / task.name)
        assert closeness(weights(run), weights(alone)) < 0.02
        assert all(each.metrics["speed"]["samples_per_second"] > 0 for each in (run, alone))
        assert run.metrics["best_metric"] == pytest.approx(alone.metrics["best_metric"], rel=5e-3)
