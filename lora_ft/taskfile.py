"""Task files: YAML in, a checked `Task` out, with every fault named; overrides; the recipes that are shipped."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from export.errors import UsageError
from export.files import write_text
from lora_ft.task import FHIR_R4, SPLITS, Task

GRID = "grid"  # of a file: values by key, a task for each combination


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a task: the key path, the value found there, what is wrong and what to do."""

    key: str
    value: Any
    problem: str

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.key} = {shown if len(shown) <= 60 else shown[:57] + '...'}: {self.problem}"


class TaskFaults(UsageError):
    """A task file with faults, all of them in `faults`."""

    def __init__(self, path: Path, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{path}: {faults[0]}{more}", f"`lora-ft validate {path}` shows all" if more else "")
        self.path, self.faults = path, list(faults)


def recipes() -> list[str]:
    """Names of the task files that ship with the project."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipe_folder().glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The task file of a shipped recipe."""
    return _recipe_folder() / f"{name}.yaml"


def load_task(path: str | Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task file, or a shipped recipe by its name.

    Args:
        path: the file.
        overrides: `key.path=value` pairs, values in YAML; paths among them start from the current folder,
            those of rows from data.root where it is given, too.

    Raises:
        TaskFaults: with every fault of the schema at once.
        UsageError: no such file, no YAML, or an override that is no pair.
    """
    file, raw = _read(path, overrides)
    if GRID in raw:
        raise UsageError(f"{file} is a grid of tasks", "train it, or give the task.yaml of one of its runs")
    return _checked(file, raw)


def read_task(content: Mapping[str, Any], file: Path, overrides: Sequence[str] = ()) -> Task:
    """A task that another file holds, a bank's manifest say; overrides and errors as of `load_task`."""
    return _checked(file, _overridden(copy.deepcopy(dict(content)), overrides))


def load_tasks(path: str | Path, overrides: Sequence[str] = ()) -> list[tuple[Task, dict[str, Any]]]:
    """The tasks of a file with a `grid`: one for each combination of its values; of another file its one task.

    `grid: {lora.r: [8, 16], train.seed: [1, 2]}` makes four, named NAME-r-8-seed-1 and so on.

    Returns:
        Each with what the grid sets in it, by key.

    Raises:
        UsageError: as of `load_task`, or `grid` is no lists of values by key.
    """
    file, raw = _read(path, overrides)
    if GRID not in raw:
        return [(_checked(file, raw), {})]
    grid = raw.pop(GRID)
    if not isinstance(grid, dict) or not grid or not all(isinstance(value, list) and value for value in grid.values()):
        raise UsageError(f"{file}: grid is not lists of values by key", "e.g. grid: {lora.r: [8, 16]}")
    for key in grid:
        if key == "name" or not all(str(key).split(".")):
            raise UsageError(f"{file}: grid cannot set '{key}'", "name keys of the task, e.g. train.learning_rate")
        if any(override.partition("=")[0] == key for override in overrides):
            raise UsageError(f"--set {key} and the grid of {file} both set it", "change the grid")
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        one = copy.deepcopy(raw)
        for key, value in settings.items():
            _set(one, key, value, f"{file}: grid.{key}")
        parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
        one["name"] = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([str(raw.get("name")), *parts]))
        found.append((_checked(file, one), settings))
    return found


def _read(path: str | Path, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The file, and what it holds under the overrides."""
    file = _find(path)
    return file, _overridden(_read_yaml(file), overrides)


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        _override(raw, override)
    _from_here(raw, overrides)
    return raw


def _checked(file: Path, raw: dict[str, Any]) -> Task:
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        raise TaskFaults(file, [_fault(entry) for entry in error.errors()]) from error
    folder = file.resolve().parent
    task.data.root = folder / task.data.root.expanduser() if task.data.root else folder
    schema = task.evaluate.json_schema
    if schema is not None and schema != FHIR_R4:
        task.evaluate.json_schema = str(folder / Path(schema).expanduser())
    if task.base.startswith((".", "~")) or (task.base != "offline" and (folder / task.base).is_dir()):
        task.base = str((folder / Path(task.base).expanduser()).resolve())
    return task


def save_task(task: Task, path: Path) -> None:
    """Write a task with every default filled in, such that `load_task` gives it back."""
    write_text(path, task_text(task))


def task_text(task: Task) -> str:
    """A task as YAML, with every default filled in."""
    content = task.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    if yaml.safe_load(text) != content:  # PyYAML writes rare line breaks (U+0085) such that they do not come back
        text = yaml.safe_dump(content, sort_keys=False, width=100)
    return text


def _recipe_folder() -> Path:
    return Path(str(files("lora_ft") / "recipes"))


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if str(path) in recipes():
        return recipe_file(str(path))
    raise UsageError(f"no task file {path}", f"give a YAML file, or a recipe: {', '.join(recipes())}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{file} is not a task: it holds no keys", "see the recipes for examples")
    return raw


_PATHS = ("root", *SPLITS)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {override} is not key.path=value", "e.g. --set train.num_train_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {key}: {text!r} is not YAML", "quote it") from error
    _set(raw, key, value, f"--set {override}")


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    section: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UsageError(f"{where}: {parent} has no keys of its own")
    section[last] = value


def _from_here(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let the paths among the overrides start from the current folder (those in the file start from the file's).

    Rows start from data.root where that is given, too.
    """
    data = raw.get("data")
    keys = [override.partition("=")[0] for override in overrides]
    paths = ("root",) if "data.root" in keys else _PATHS
    for key in keys:
        section, _, name = key.rpartition(".")
        if key == "base" and Path(str(raw["base"])).expanduser().is_dir():
            raw["base"] = _absolute(raw["base"])
        elif section == "data" and name in paths and isinstance(data, dict) and not data.get("hub"):
            value = data[name]
            data[name] = [_absolute(item) for item in value] if isinstance(value, list) else _absolute(value)
        elif key == "evaluate.json_schema" and raw["evaluate"]["json_schema"] != FHIR_R4:
            raw["evaluate"]["json_schema"] = _absolute(raw["evaluate"]["json_schema"])


def _absolute(value: Any) -> Any:
    return str(Path.cwd() / Path(value).expanduser()) if isinstance(value, str) else value


def _fault(entry: Mapping[str, Any]) -> Fault:
    """A pydantic error in our words."""
    parts = [str(part) for part in entry["loc"] if not str(part).startswith(("function-", "constrained", "literal["))]
    parts = [part for part in parts if part not in ("int", "str", "list[str]", "float")]
    problem = {
        "extra_forbidden": "unknown key; remove it or correct its spelling",
        "missing": "missing; add it",
    }.get(entry["type"], entry["msg"].removeprefix("Value error, "))
    value = None if entry["type"] == "missing" else entry["input"]
    return Fault(".".join(parts) or "task", value, problem)
