"""The adapters in a folder of runs: list, inspect and remove."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.core.files import folder_size, read_json
from lora_ft.core.locks import locked
from lora_ft.models.adapter_files import adapter_config
from lora_ft.runs.grid_results import GRID
from lora_ft.runs.run import METRICS, Run, is_run


@dataclass(frozen=True)
class AdapterEntry:
    """One adapter in a folder of runs.

    Attributes:
        run: Run that trained the adapter.
        rank: Largest rank of its layers.
        bytes: Size of the adapter alone, in bytes.
        metric, score: Metric that chose the checkpoint, and its best value; None without validation rows.
        trained: Time at which training finished.
        best: True if it is the best of a grid.
    """

    run: Run
    rank: int
    bytes: int
    metric: str
    score: float | None
    trained: datetime
    best: bool

    @property
    def name(self) -> str:
        """Return the name of the run's folder, which differs between two runs of one task."""
        return self.run.folder.name


def adapter_entry(folder: Path) -> AdapterEntry:
    """Return the adapter of a run.

    Raises:
        UsageError: The folder is not a run, or is a run of method full.
    """
    run = Run(folder)
    if run.task.method != "lora":
        raise UsageError(f"{folder} is a run of method {run.task.method}, which has no adapter", "pass a LoRA run")
    config = adapter_config(run.adapter)
    grid = folder.parent / GRID
    return AdapterEntry(
        run,
        max(config["r"], *(config.get("rank_pattern") or {}).values(), 0),
        folder_size(run.adapter),
        run.task.train.metric_for_best_model,
        run.metrics["best_metric"],
        datetime.fromtimestamp((folder / METRICS).stat().st_mtime),
        grid.is_file() and read_json(grid).get("best") == run.task.name,
    )


def list_runs(folder: Path) -> list[AdapterEntry]:
    """Return the adapters of all runs directly below a folder, by name, without runs of method full.

    Raises:
        UsageError: There are no such runs.
    """
    runs = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    adapters = [adapter_entry(path) for path in runs if Run(path).task.method == "lora"]
    if not adapters:
        raise UsageError(f"{folder} contains no runs with adapters", "pass the folder that `lora-ft train --out` wrote")
    return adapters


def remove_runs(folders: Sequence[Path]) -> int:
    """Delete runs, and return the number of bytes freed.

    Raises:
        UsageError: A folder is not a run (then none is deleted), or another job is using a run.
    """
    for folder in folders:
        if folder.is_symlink() or not is_run(folder):
            raise UsageError(f"{folder} is not a run", "pass folders of runs only")
    freed = sum(folder_size(folder) for folder in folders)
    for folder in folders:
        with locked(folder.resolve()):
            shutil.rmtree(folder)
    return freed
