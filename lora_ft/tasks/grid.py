"""Grids: one task file for many tasks, with one task for each combination of values."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lora_ft.core.errors import UsageError

GRID = "grid"  # key of a task file that maps keys to lists of values
MAX_TASKS = 10_000


def combinations(
    raw: dict[str, Any], where: str, overrides: Sequence[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the content of each task of a grid, and the grid's values in it, by key.

    Args:
        raw: Content of a task file with the key `grid`.
        where: Name of the file, for errors.
        overrides: `key.path=value` pairs that were applied to it.

    Raises:
        UsageError: The grid does not map keys to lists, has more than `MAX_TASKS` tasks, or sets an overridden key.
    """
    raw = dict(raw)
    grid = raw.pop(GRID)
    if not isinstance(grid, dict) or not grid or not all(isinstance(value, list) and value for value in grid.values()):
        raise UsageError(f"{where}: grid does not map keys to lists of values", "write it like grid: {lora.r: [8, 16]}")
    for key in grid:
        if key.split(".")[0] in ("name", GRID) or not all(key.split(".")):
            raise UsageError(
                f"{where}: grid cannot set '{key[:60]}'", "name keys of the task, e.g. train.learning_rate"
            )
        if any(override.partition("=")[0] == key for override in overrides):
            raise UsageError(f"{key} is set by both --set and the grid of {where}", "remove one of the two")
    count = math.prod(map(len, grid.values()))
    if count > MAX_TASKS:
        raise UsageError(f"{where}: grid has {count:,} tasks (at most {MAX_TASKS:,})", "list fewer values")
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        task = copy.deepcopy(raw)
        for key, value in settings.items():
            set_key(task, key, value, f"{where}: grid.{key}")
        task["name"] = _name(raw.get("name"), settings)
        yield task, settings


def set_key(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a value by the path of its key; missing sections are added.

    Raises:
        UsageError: A part of the path is a value, not a section.
    """
    section: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UsageError(f"{where}: {parent} is not a section", "name a key of a section, e.g. lora.r")
    section[last] = value


def _name(name: Any, settings: dict[str, Any]) -> str:
    """Return the name of one combination, such as NAME-r-8-seed-1."""
    parts = [f"{key.rpartition('.')[2]}-{str(value)[:200]}" for key, value in settings.items()]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([str(name), *parts]))
