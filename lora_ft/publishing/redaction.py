"""Remove local paths from tasks and records before they are published."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path, PurePath
from typing import Any

from lora_ft.models.bases import OFFLINE
from lora_ft.tasks.evaluate import FHIR_R4
from lora_ft.tasks.schema import SPLITS, Task

# A path of at least two parts in a text, from the root, the home or a parent folder (`/a/b`, `~/a`, `C:\a\b`, `../a`).
# Directly after a word, a colon or a slash it is not a path but part of a URL.
_PATH = re.compile(
    r"(?<![\w:/.~-])(?:(?:~\w*|[A-Za-z]:)?(?:[/\\][\w.@+-]+){2,}|(?:~\w*|\.\.)(?:[/\\][\w.@+-]+)+)[/\\]?"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_name(base: str) -> bool:
    """Return whether a base is a Hub name. False for a folder and for the base `offline`."""
    return base != OFFLINE and _HUB_NAME.fullmatch(base) is not None and not Path(base).is_dir()


def base_name(base: str) -> str:
    """Return the public name of a base: "offline", its Hub name, or `./` with the last part of its folder."""
    return base if base == OFFLINE or is_hub_name(base) else f"./{PurePath(base).name}"


def public_task(task: Task) -> Task:
    """Return a task without local paths.

    Files below the task file's folder keep their path relative to it. Other files keep only their names, as do a base,
    an encoder or a JSON schema in a folder. A user of the task puts such files next to it.
    """
    root = task.data.root
    content = task.model_dump(exclude_none=True)
    content["data"].pop("root", None)
    if task.data.hub is None:  # with a data set of the Hub, these are names of splits
        files = {name: content["data"][name] for name in SPLITS if name in content["data"]}
        content["data"] |= _map_strings(files, lambda text: _public_path(text, root))
    if "start_from" in content["lora"]:
        content["lora"]["start_from"] = base_name(content["lora"]["start_from"])
    if distill := content["train"].get("distill"):
        distill["teacher"] = base_name(distill["teacher"])
    scoring = content["evaluate"]
    if scoring.get("json_schema", FHIR_R4) != FHIR_R4:
        scoring["json_schema"] = f"./{PurePath(scoring['json_schema']).name}"
    for key in ("bertscore_model", "nli_model"):
        if key in scoring:
            scoring[key] = base_name(scoring[key])
    return Task.model_validate(content | {"base": base_name(task.base)})


def data_sources(task: Task) -> list[str]:
    """Return the names of a task's training files and data sets, without local paths."""
    data = public_task(task).data
    files = [data.train] if isinstance(data.train, str) else data.train or []
    return list(dict.fromkeys([*([data.hub] if data.hub else files), *task.card.datasets]))


def public_record(record: Any) -> Any:
    """Return a JSON value with every absolute path reduced to its last part."""
    return _map_strings(record, without_paths)


def without_paths(text: str) -> str:
    """Return a text with every absolute path reduced to its last part."""
    if "\n" not in text and PurePath(text).is_absolute():
        return PurePath(text).name
    return _PATH.sub(lambda match: PurePath(match[0].replace("\\", "/")).name, text)


def _public_path(text: str, root: Path | None) -> str:
    """Return a file or glob relative to `root` if it lies below `root`, else its last part.

    `..` and `~` are resolved first, since they can name folders of this machine.
    """
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # `~name` without a user of that name is an ordinary folder
        path = path.expanduser()
    top = Path.cwd() / (root or "")
    path = Path(os.path.normpath(top / path))
    return str(path.relative_to(top)) if path.is_relative_to(top) else path.name


def _map_strings(value: Any, change: Any) -> Any:
    """Return a JSON value with `change` applied to every string. Keys stay unchanged."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return [_map_strings(item, change) for item in value] if isinstance(value, list) else value
