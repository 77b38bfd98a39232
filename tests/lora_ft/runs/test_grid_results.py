"""Best run of a grid, and the file that records it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_ft.runs.grid_results import best_run, mark_best


def run(name: str, metric: str, score: float | None) -> Any:
    task = SimpleNamespace(name=name, train=SimpleNamespace(metric_for_best_model=metric))
    return SimpleNamespace(task=task, metrics={"best_metric": score, "best_step": 3})


def test_best_run_has_the_highest_score_or_lowest_loss() -> None:
    assert best_run([run("a", "rouge1", 3.0), run("b", "rouge1", 5.0), run("c", "rouge1", None)]).task.name == "b"  # type: ignore[union-attr]
    assert best_run([run("a", "loss", 3.0), run("b", "loss", 5.0)]).task.name == "a"  # type: ignore[union-attr]


def test_no_run_is_best_if_scores_cannot_be_compared() -> None:
    assert best_run([run("a", "rouge1", 3.0), run("b", "loss", 5.0)]) is None
    assert best_run([run("a", "rouge1", None)]) is None


def test_grid_file_records_settings_and_scores(tmp_path: Path) -> None:
    runs = [run("a", "rouge1", 3.0), run("b", "rouge1", 5.0)]
    assert mark_best(runs, {"a": {"lora.r": 8}, "b": {"lora.r": 16}}, tmp_path) is runs[1]
    grid = json.loads((tmp_path / "grid.json").read_text())
    assert grid["best"] == "b" and grid["version"] == 1
    assert grid["runs"][0] == {"name": "a", "settings": {"lora.r": 8}, "metric": "rouge1", "score": 3.0, "step": 3}
