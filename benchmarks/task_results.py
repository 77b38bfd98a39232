"""Result files with the figures of several tasks, each measured by itself and on its own machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.core.files import read_json, write_json
from lora_ft.doctor import environment


def write_tasks(path: Path, version: int, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write the figures of some tasks, with the environment of this process, and keep those of others.

    Args:
        path: JSON file of the results. One of another version is replaced.
        version: Version of the figures.
        tasks: Figures by task.

    Returns:
        The content of the file.
    """
    earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
    kept = earlier["tasks"] if earlier.get("version") == version else {}
    measured = {name: {"environment": environment(), **figures} for name, figures in tasks.items()}
    results = {"version": version, "tasks": {**kept, **measured}}
    write_json(path, results)
    return results
