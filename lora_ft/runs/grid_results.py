"""The best run of a grid, and its record in the grid's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.core.files import write_json
from lora_ft.runs.run import Run

GRID = "grid.json"
_VERSION = 1


def best_run(runs: Sequence[Run]) -> Run | None:
    """Return the run with the best validation score, or None without scores or with different metrics."""
    scored = [run for run in runs if run.metrics["best_metric"] is not None]
    metrics = {run.task.train.metric_for_best_model for run in scored}
    if len(metrics) != 1:
        return None
    sign = -1 if metrics == {"loss"} else 1
    return max(scored, key=lambda run: sign * run.metrics["best_metric"])


def mark_best(runs: Sequence[Run], settings: Mapping[str, Mapping[str, Any]], out: Path) -> Run | None:
    """Write `grid.json`: every run of a grid with its settings and score, and the best run's name.

    Args:
        runs: Runs of the grid.
        settings: Values that the grid sets, by task name and by key.
        out: Folder of the grid.

    Returns:
        Best run, or None if the runs cannot be compared.
    """
    best = best_run(runs)
    entries = [
        {
            "name": run.task.name, "settings": settings[run.task.name],
            "metric": run.task.train.metric_for_best_model, "score": run.metrics["best_metric"],
            "step": run.metrics["best_step"],
        }
        for run in runs
    ]
    write_json(out / GRID, {"version": _VERSION, "best": best.task.name if best else None, "runs": entries})
    return best
