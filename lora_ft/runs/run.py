"""Folder of a finished run: its files, task, metrics and scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.runs.records import read_metrics, read_scores
from lora_ft.tasks.schema import SPLITS, Task
from lora_ft.tasks.files import load_task

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # files of an adapter, by PEFT's names
TASK, METRICS, LOG, CARD = "task.yaml", "metrics.json", "log.jsonl", "README.md"
ADAPTER, CHECKPOINT = "adapter", "checkpoint"  # training writes `adapter`, or with method full `checkpoint`
CURVES = "tensorboard"
CLAIM = "claim.json"  # the run's identifier, and digests of the rows that it began with
REPORT = "report.html"
RESUME = "resume"  # the state after the last step, from which the run can be trained longer
SCORES, PREDICTIONS = "scores-{}.json", "predictions-{}.jsonl"  # with the split's name


class Run:
    """A finished run.

    Attributes:
        folder: Folder of the run.
        task: Task of the run, with every default filled in.
        metrics: Measurements of the training (metrics.json).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not is_run(self.folder):
            raise UsageError(f"{self.folder} is not a run", "create one with `lora-ft train`")
        self.task: Task = load_task(self.folder / TASK)
        self.metrics: dict[str, Any] = read_metrics(self.folder / METRICS)

    def __fspath__(self) -> str:
        """Return the folder, so that a run can be passed as a path."""
        return str(self.folder)

    def __str__(self) -> str:
        best, step = self.metrics["best_metric"], self.metrics["best_step"]
        metric = self.task.train.metric_for_best_model
        score = "no validation score" if best is None else f"{metric} {best:.4g} at step {step:,}"
        return f"{self.task.name}: finished after {self.metrics['steps']:,} steps, {score}, in {self.folder}"

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def as_dict(self) -> dict[str, Any]:
        """Return the run's folder, task name, metrics and scores, in the types of JSON."""
        return {
            "folder": str(self.folder), "task": self.task.name, "metrics": self.metrics, "scores": self.scores
        }

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter, in PEFT's format. In a run from the Hub, that is the run's folder."""
        inside = self.folder / ADAPTER
        return inside if (inside / CONFIG).is_file() else self.folder

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the results of `evaluate` on the run's own task, by split."""
        files = {split: self.folder / SCORES.format(split) for split in SPLITS}
        results = {split: read_scores(file) for split, file in files.items() if file.is_file()}
        return {split: entry for split, entry in results.items() if entry["task"] == self.task.name}

    @property
    def trained(self) -> Path:
        """Return the folder of the trained weights: the adapter, or with `method: full` the checkpoint."""
        return self.adapter if self.task.method == "lora" else self.folder / CHECKPOINT


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run."""
    trained = (folder / ADAPTER / CONFIG, folder / CONFIG, folder / CHECKPOINT / "config.json")
    return (folder / TASK).is_file() and any(path.is_file() for path in trained)


def working_folder(out: Path) -> Path:
    """Return the folder in which a run trains before it becomes `out`."""
    return out.with_name(f"{out.name}.unfinished")
