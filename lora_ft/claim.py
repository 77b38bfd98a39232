"""The place of a run: free to be written, or an unfinished one of the same task."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.errors import UsageError
from export.files import refuse_existing
from lora_ft.processes import rank
from lora_ft.runs import TASK
from lora_ft.task import AUTO, Task
from lora_ft.taskfile import load_task


def claim(task: Task, out: Path, working: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that this run may be written, before anything else is done.

    Args:
        task: to train.
        out, working: where its run will be, and is while it trains.
        resume, overwrite: as of `train`.

    Raises:
        UsageError: the place is taken, or there is nothing of this task to resume.
    """
    if rank() != 0:
        return
    refuse_existing(out, overwrite=overwrite)
    if resume:
        if not (working / TASK).is_file():
            raise UsageError(f"there is no unfinished run {working} to resume", "leave out --resume")
        before = load_task(working / TASK)
        if task.labels == AUTO:  # they were found when it began
            task = task.model_copy(update={"labels": before.labels})
        if before != task:
            changed = [name for name in Task.model_fields if getattr(before, name) != getattr(task, name)]
            raise UsageError(
                f"the unfinished run {working} was started with another {', '.join(changed)}",
                "resume with the same task and --set, or start anew with --overwrite",
            )
    elif working.exists() and not overwrite:
        raise UsageError(f"an unfinished run lies in {working}", "add --resume to go on, or --overwrite to start anew")
    elif working.exists():
        shutil.rmtree(working)
