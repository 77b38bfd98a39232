"""The comparison of a search with its grid: both choose without test rows, and the search trains fewer samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.search import measure, tables
from lora_ft.core.progress import Silent
from lora_ft.tasks.files import load_task
from tests.conftest import write_task

SPACE: dict[str, list[Any]] = {"lora.r": [2, 4], "train.learning_rate": [1e-4, 1e-3, 1e-2]}


def test_search_is_compared_with_its_grid(tiny_base: Path, tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path, tiny_base, train={"max_steps": 27}), ["train.metric_for_best_model=loss"])
    figures = measure(task, SPACE, tmp_path / "out", Silent())
    grid, searched = figures["grid"], figures["search"]
    assert len(grid["runs"]) == 6 and grid["steps"] == 6 * 27
    assert searched["samples"] < grid["samples"] == grid["steps"] * task.train.per_device_train_batch_size
    losses = [entry["best_metric"] for entry in grid["runs"]]
    assert losses == sorted(losses) and grid["best_metric"] == losses[0]
    winner = grid["runs"][figures["rank_in_grid"] - 1]
    assert winner["settings"] == searched["settings"]
    assert winner["trainable_parameters"] == searched["trainable_parameters"]
    shown = tables({"tasks": {"tiny": figures}})
    assert "| tiny | grid | " in shown and "|  | search | " in shown
    assert f"rank {figures['rank_in_grid']} of the grid by validation loss" in shown
