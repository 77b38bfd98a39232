"""Local files and folders that a task reads, which no output may replace."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from lora_ft.tasks.rows import RowsInMemory
from lora_ft.tasks.schema import SPLITS, Task


def input_paths(task: Task) -> Iterator[Path]:
    """Yield the local files and folders that a task reads."""
    yield Path(task.base)
    data = task.data
    if data.hub is not None or data.root is None:
        return
    for split in SPLITS:
        names = getattr(data, split) or []
        if isinstance(names, RowsInMemory):
            continue
        for name in [names] if isinstance(names, str) else names:
            pattern = str(data.root / Path(name).expanduser())  # Path.glob takes no absolute patterns
            yield from map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207
