"""Rows that a run stores in its folder, because its task was created in Python."""

from __future__ import annotations

from pathlib import Path

from lora_ft.data.readers import read_rows
from lora_ft.runs.run import working_folder
from lora_ft.tasks.rows import FOLDER, RowsInMemory
from lora_ft.tasks.schema import SPLITS, Task


def with_own_rows(task: Task, out: Path) -> Task:
    """Return a task with its rows loaded into memory, if they are stored in the folder of its run.

    Training longer or overwriting replaces the run, including its rows. They are therefore read first, and written into
    the new folder. Other tasks are returned unchanged.

    Args:
        task: Task to train, for example the `task.yaml` of a run.
        out: Folder of the run.
    """
    root = task.data.root
    if root is None or root.resolve() not in (out.resolve(), working_folder(out).resolve()):
        return task
    files = {split: f"{FOLDER}/{split}.jsonl" for split in SPLITS}
    rows = {
        split: RowsInMemory(name, [row for _, row in read_rows(root, name, f"data.{split}")])
        for split, name in files.items()
        if str(getattr(task.data, split)) == name
    }
    return task.model_copy(update={"data": task.data.model_copy(update=rows)}) if rows else task
