"""Figures of a task replace its earlier ones in a result file, and leave those of other tasks alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.task_results import write_tasks
from lora_ft.core.files import read_json


def test_other_tasks_keep_their_figures(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_tasks(path, 1, {"a": {"score": 1}, "b": {"score": 2}})
    results = write_tasks(path, 1, {"b": {"score": 3}})
    assert results == read_json(path)
    assert {name: task["score"] for name, task in results["tasks"].items()} == {"a": 1, "b": 3}
    assert all("python" in task["environment"] for task in results["tasks"].values())


def test_figures_of_another_version_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_tasks(path, 1, {"a": {"score": 1}})
    assert list(write_tasks(path, 2, {"b": {"score": 2}})["tasks"]) == ["b"]
