"""A run that was interrupted is not gone on with when rows were appended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.runs.run import working_folder
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.training.trainer import Trainer
from tests.tiny import save_tiny_t5


def check_resume_with_appended_rows_is_refused(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch / "task")
    base = save_tiny_t5(scratch / "base")
    task = load_task(scratch / "task" / "task.yaml", [f"base={base}", "lengths.target=32"])
    _interrupt(lambda: train(task, scratch / "run"))
    rows = scratch / "task" / "t.jsonl"
    row = json.dumps({"dialogue": "Ana: the boat? Ben: at noon.", "summary": "They talk of a boat."})
    rows.write_text(rows.read_text(encoding="utf-8") + f"{row}\n" * 40, encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"rows differ from those that .* began with \(train: 64 rows, was 32"
    ) as caught:
        train(task, scratch / "run", resume=True)
    assert "trained on are now" in str(caught.value) and caught.value.exit_code == 2
    assert not (scratch / "run").exists() and working_folder(scratch / "run").is_dir()


def check_resume_with_the_same_rows_goes_on(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch / "task")
    base = save_tiny_t5(scratch / "base")
    task = load_task(scratch / "task" / "task.yaml", [f"base={base}", "lengths.target=32"])
    _interrupt(lambda: train(task, scratch / "run"))
    assert train(task, scratch / "run", resume=True).metrics["resumed_at"] == 2


def _interrupt(job: Callable[[], object]) -> None:
    """Run a training until its second step is done, and end it there."""

    def stop(self: Trainer, loss: float) -> None:
        if self.state.global_step == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_guard", stop)
        job()
