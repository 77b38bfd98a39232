"""Load task files and shipped recipes as validated tasks, apply overrides, and save tasks."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_ft.core.errors import TaskError, UsageError, raised_as
from lora_ft.core.files import read_json, write_text
from lora_ft.core.user_paths import expanded
from lora_ft.tasks.error_details import ErrorDetails as ErrorDetails
from lora_ft.tasks.error_details import InvalidTaskError as InvalidTaskError
from lora_ft.tasks.error_details import error_details, shown
from lora_ft.tasks.evaluate import FHIR_R4
from lora_ft.tasks.grid import GRID, combinations, set_key
from lora_ft.tasks.plain_yaml import Document, Mark, Place, parse_yaml, plain_text, read_yaml
from lora_ft.tasks.rows import RowsInMemory
from lora_ft.tasks.schema import SPLITS, Task
from lora_ft.tasks.search import SEARCH, Space, read_space


def recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipe_folder().glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """Return the task file of a shipped recipe."""
    return _recipe_folder() / f"{name}.yaml"


def copy_schemas(recipe: Path, folder: Path) -> None:
    """Copy the JSON schemas that a recipe names to a folder, under the same names. Existing files stay."""
    content = read_yaml(recipe).value
    for section in ("generate", "evaluate"):
        name = content.get(section, {}).get("json_schema")
        if isinstance(name, str) and name != FHIR_R4 and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe.parent / name, folder / name)


@raised_as(TaskError)
def load_task(path: str | Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task file, or a shipped recipe by its name.

    Args:
        path: Task file, or name of a recipe.
        overrides: `key.path=value` pairs with values in YAML. Paths in them start from the current folder; paths of
            rows start from data.root if that is overridden too.

    Raises:
        InvalidTaskError: The task has errors; the exception lists all of them.
        UsageError: The file is missing or not YAML, or an override is malformed.
    """
    file, document = _read(path, overrides)
    if GRID in document.value:  # its errors first: messages say that `validate` shows them
        _tasks_of_grid(file, document, overrides)
        raise UsageError(f"{file} is a grid of tasks", "train it, or pass the task.yaml of one of its runs")
    if SEARCH in document.value:
        _task_and_space(file, document, overrides)
    _refuse_search(file, document)
    return _checked(file, document)


@raised_as(TaskError)
def read_task(content: Mapping[str, Any], file: Path, overrides: Sequence[str] = ()) -> Task:
    """Return a task stored in another file, such as a bank's manifest; overrides and errors as in `load_task`."""
    return _checked(file, _overridden(Document(copy.deepcopy(dict(content))), overrides))


@raised_as(TaskError)
def load_tasks(path: str | Path, overrides: Sequence[str] = ()) -> list[tuple[Task, dict[str, Any]]]:
    """Return the tasks of a file: one for each combination of its `grid`'s values, or a single one without a grid.

    `grid: {lora.r: [8, 16], train.seed: [1, 2]}` stands for four tasks, named NAME-r-8-seed-1 and so on.

    Returns:
        Pairs of a task and the grid's values in it, by key.

    Raises:
        UsageError: As in `load_task`, or `grid` does not map keys to lists of values.
    """
    file, document = _read(path, overrides)
    _refuse_search(file, document)
    if GRID not in document.value:
        return [(_checked(file, document), {})]
    return _tasks_of_grid(file, document, overrides)


@raised_as(TaskError)
def load_search(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Task, Space]:
    """Return the task of a file with the key `search`, and its search space.

    `search: {lora.r: [8, 16], train.learning_rate: {low: 1e-4, high: 1e-2, log: true}}` varies two keys.

    Raises:
        InvalidTaskError: The task or the space has errors; the exception lists all of them.
        UsageError: As in `load_task`, or the file has no key `search`.
    """
    file, document = _read(path, overrides)
    return _task_and_space(file, document, overrides)


def _tasks_of_grid(file: Path, document: Document, overrides: Sequence[str]) -> list[tuple[Task, dict[str, Any]]]:
    return [
        (_checked(file, Document(raw, document.marks)), settings)
        for raw, settings in combinations(document.value, str(file), overrides)
    ]


def _task_and_space(file: Path, document: Document, overrides: Sequence[str]) -> tuple[Task, Space]:
    raw = {key: value for key, value in document.value.items() if key != SEARCH}
    if GRID in raw:
        raise UsageError(f"{file} is a grid of tasks", "replace the key grid by search")
    if SEARCH not in document.value:
        raise UsageError(f"{file} has no search space", "add one, e.g. search: {lora.r: [4, 8, 16]}")
    task = _checked(file, Document(raw, document.marks))
    space = read_space(document.value[SEARCH], task, file, document.marks)
    for override in overrides:
        if (key := override.partition("=")[0]) in space.values:
            raise UsageError(f"{key} is set by both --set and the search space of {file}", "remove one of the two")
    return task, space


def _read(path: str | Path, overrides: Sequence[str]) -> tuple[Path, Document]:
    """Return the path of a task file, and its content with the overrides applied."""
    file = _find(path)
    document = read_yaml(file)
    if not isinstance(document.value, dict):
        raise UsageError(f"{file} is not a task: it has no keys", "see the recipes for examples")
    return file, _overridden(document, overrides)


def _refuse_search(file: Path, document: Document) -> None:
    if SEARCH in document.value:
        raise UsageError(f"{file} has a search space", "run `lora-ft search` on it, or remove the key search")


def _overridden(document: Document, overrides: Sequence[str]) -> Document:
    marks = document.marks
    for override in overrides:
        marks = _override(document.value, marks, override)
    _from_here(document.value, overrides)
    return Document(document.value, marks)


def _checked(file: Path, document: Document) -> Task:
    try:
        task = Task.model_validate(document.value)
    except InvalidTaskError as error:
        cause = error.__cause__
        assert isinstance(cause, ValidationError)
        raise InvalidTaskError(file, error_details(cause, document.value, document.marks)) from cause
    return _located(task, file.resolve().parent)


def as_task(task: Task | str | os.PathLike[str], overrides: Sequence[str] = ()) -> Task:
    """Return a task unchanged, or load it from a file or a recipe.

    Paths in a task created in Python start from the current folder.
    """
    if not isinstance(task, Task):
        return load_task(os.fspath(task), overrides)
    if overrides:
        raise TaskError("overrides are for task files", "set the values in the Task")
    if task.data.root is not None:
        return task
    sections = {name: getattr(task, name).model_copy() for name in ("data", "evaluate", "generate", "lora", "train")}
    return _located(task.model_copy(update=sections), Path.cwd())


def _located(task: Task, folder: Path) -> Task:
    """Resolve the paths of a task against a folder, and return the task."""
    task.data.root = folder / expanded(task.data.root) if task.data.root else folder
    schema = task.evaluate.json_schema
    if schema is not None and schema != FHIR_R4:
        task.evaluate.json_schema = str(folder / expanded(schema))
    if isinstance(task.generate.json_schema, str):
        task.generate.json_schema = _read_schema(folder / expanded(task.generate.json_schema))
    task.base = _local_model(task.base, folder)
    if task.lora.start_from is not None:
        task.lora.start_from = str((folder / expanded(task.lora.start_from)).resolve())
    if (distill := task.train.distill) is not None:
        task.train.distill = distill.model_copy(update={"teacher": _local_model(distill.teacher, folder)})
    return task


def _read_schema(path: Path) -> dict[str, Any]:
    """Return the schema of `generate.json_schema`, which becomes part of the task, so that runs and bundles have it."""
    if not path.is_file():
        raise UsageError(f"generate.json_schema: {path} does not exist", "name a JSON schema file, or write it inline")
    return read_json(path)


def _local_model(name: str, folder: Path) -> str:
    """Return the absolute path of a model in a local folder. Other names are returned unchanged."""
    if name.startswith((".", "~")) or (name != "offline" and _is_folder(folder / name)):
        return str((folder / expanded(name)).resolve())
    return name


def saved_task(task: Task, folder: Path) -> Task:
    """Return the task that `load_task` reads after `save_task` wrote it to a folder.

    The task differs only if it has rows in memory: they become files in the folder, so that it can be moved.
    """
    data = task.data
    if not data.in_memory:
        return task
    root = data.root or Path.cwd()
    names: dict[str, Any] = {}
    for split in SPLITS:
        value = getattr(data, split)
        if isinstance(value, RowsInMemory):
            names[split] = str(value)
        elif value is not None:
            names[split] = [str(root / expanded(name)) for name in ([value] if isinstance(value, str) else value)]
    return task.model_copy(update={"data": data.model_copy(update={**names, "root": folder})})


def save_task(task: Task, path: Path) -> None:
    """Write a task with every default filled in, so that `load_task` returns it; write rows in memory next to it."""
    for rows in task.data.in_memory.values():
        file = path.parent / rows
        file.parent.mkdir(exist_ok=True)
        write_text(file, rows.text)
    if task.data.in_memory:
        task = saved_task(task, path.parent)
        task = task.model_copy(update={"data": task.data.model_copy(update={"root": None})})
    write_text(path, task_text(task))


def task_text(task: Task) -> str:
    """Return a task as YAML, with every default filled in."""
    content = task.model_dump(mode="json", exclude_none=True)
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if parse_yaml(text, "the task").value != content:  # PyYAML writes U+0085 in a form that it reads as a line break
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)
    return text


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes text which `plain_yaml` would read as another type."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain_text(text) else '"')


_Dumper.add_representer(str, _text_node)


def _recipe_folder() -> Path:
    return Path(str(files("lora_ft") / "recipes"))


def _find(path: str | Path) -> Path:
    file = Path(path)
    try:
        if file.is_file():
            return file
        if str(path) in recipes():
            return recipe_file(str(path))
        kind = "a folder" if file.is_dir() else "not a file" if file.exists() else ""
    except (OSError, ValueError):  # the name is too long or contains a NUL
        kind = ""
    remedy = f"give a YAML file, or a recipe: {', '.join(recipes())}"
    raise UsageError(
        f"{shown(str(path))[1:-1]} is {kind}" if kind else f"no task file {shown(str(path))[1:-1]}", remedy
    )


_PATHS = ("root", *SPLITS)


def _override(raw: dict[str, Any], marks: Mapping[Place, Mark], override: str) -> dict[Place, Mark]:
    """Apply a `key.path=value` pair, and return the marks, with those of the new value replacing the old ones."""
    key, equals, text = override.partition("=")
    parts = tuple(key.split("."))
    if not equals or not all(parts):
        raise UsageError(f"--set {shown(override)} is not key.path=value", "e.g. --set train.num_train_epochs=2")
    document = parse_yaml(text, f"--set {shown(override)}")
    set_key(raw, key, document.value, f"--set {shown(override)}")
    remaining = {place: mark for place, mark in marks.items() if place[: len(parts)] != parts}
    return remaining | {(*parts, *place): Mark(0, mark.text) for place, mark in document.marks.items()}


def _from_here(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Resolve paths in overrides against the current folder; paths in the file are relative to the file.

    Paths of rows start from data.root if that is overridden too.
    """
    data = raw.get("data")
    keys = [override.partition("=")[0] for override in overrides]
    paths = ("root",) if "data.root" in keys else _PATHS
    for key in keys:
        section, _, name = key.rpartition(".")
        if key == "base" and isinstance(raw["base"], str) and _is_folder(expanded(raw["base"])):
            raw["base"] = _absolute(raw["base"])
        elif section == "data" and name in paths and isinstance(data, dict) and name in data and not data.get("hub"):
            value = data[name]
            data[name] = [_absolute(item) for item in value] if isinstance(value, list) else _absolute(value)
        elif name == "json_schema" and isinstance(raw.get(section), dict):  # a later override may replace the section
            schema = raw[section].get(name)
            if schema not in (None, FHIR_R4):
                raw[section][name] = _absolute(schema)


def _absolute(value: Any) -> Any:
    return str(Path.cwd() / expanded(value)) if isinstance(value, str) else value


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # the name is too long or contains a NUL
        return False
