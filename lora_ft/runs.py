"""The folder that training one task leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.errors import LoraFtError, UsageError
from lora_ft.adapters import CONFIG
from lora_ft.task import Task
from lora_ft.taskfile import load_task

TASK, METRICS, LOG, CARD, ADAPTER = "task.yaml", "metrics.json", "log.jsonl", "README.md", "adapter"


class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        task: its task, with every default filled in.
        metrics: what training measured (metrics.json).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_run(self.folder):
            raise UsageError(f"{folder} is not a run", "make one with `lora-ft train`")
        self.task: Task = load_task(self.folder / TASK)
        try:
            self.metrics: dict[str, Any] = json.loads((self.folder / METRICS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoraFtError(
                f"{self.folder / METRICS} is missing or damaged ({error})", "train the run again"
            ) from error

    @property
    def adapter(self) -> Path:
        """The adapter, in peft's format."""
        return self.folder / ADAPTER


def is_run(folder: Path) -> bool:
    """Whether a folder is a run."""
    return (folder / TASK).is_file() and (folder / ADAPTER / CONFIG).is_file()


def unfinished(out: Path) -> Path:
    """Where a run that will become `out` is while it trains."""
    return out.with_name(f"{out.name}.unfinished")
