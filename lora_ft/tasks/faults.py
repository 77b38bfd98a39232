"""Errors of a task: the key, its value, the problem, and the line of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

from lora_ft.core.errors import TaskError
from lora_ft.tasks.plain_yaml import Mark, Place

_SHOWN = 60  # characters
_KINDS = frozenset(
    ("int", "str", "float", "bool", "list", "dict", "none")
)  # names that pydantic gives to parts of a union
_short = Repr()
_short.maxlist = _short.maxdict = _short.maxtuple = 4
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 2 * _SHOWN


def shown(value: Any) -> str:
    """Return a value as messages show it, in at most 60 characters."""
    text = repr(value[: 2 * _SHOWN]) if isinstance(value, str) else _short.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@dataclass(frozen=True)
class Fault:
    """One error of a task.

    Attributes:
        key: path of the key, such as `train.seed`.
        value: value of the key.
        problem: description of the error, and the remedy.
        line: line of the task file, or 0 if the value comes from elsewhere.
    """

    key: str
    value: Any
    problem: str
    line: int = 0

    def __str__(self) -> str:
        place = f" (line {self.line})" if self.line else ""
        return f"{self.key} = {shown(self.value)}: {self.problem}{place}"


class TaskFaults(TaskError):
    """A task with faults.

    Attributes:
        path: File of the task; None for one made in Python.
        faults: All faults.
    """

    def __init__(self, path: Path | None, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        remedy = "" if not more else f"`lora-ft validate {path}` shows all" if path else "see `faults` of this error"
        super().__init__(f"{path or 'the task'}: {faults[0]}{more}", remedy)
        self.path, self.faults = path, list(faults)


def faults_of(error: ValidationError, raw: Any, marks: Mapping[Place, Mark]) -> list[Fault]:
    """Return pydantic's errors as faults, one for each key.

    Args:
        error: validation error of a task.
        raw: content that was validated.
        marks: places of its values in the file, if known.
    """
    found: dict[tuple[str, int], Fault] = {}
    for entry in error.errors(include_url=False):
        place, key = _place(entry["loc"], raw)
        mark = marks.get(place)
        problem = _problem(entry, mark)
        fault = Fault(key, None if entry["type"] == "missing" else entry["input"], problem, mark.line if mark else 0)
        known = found.setdefault((key, fault.line), fault)
        if known is not fault and problem not in known.problem:  # from another part of a union
            found[key, fault.line] = Fault(key, fault.value, f"{known.problem}; or {problem}", fault.line)
    return list(found.values())


def _place(location: Sequence[str | int], raw: Any) -> tuple[Place, str]:
    """Return the path of a value, and its key. Parts of unions, which pydantic adds to the path, are left out."""
    place: list[str | int] = []
    names: list[str] = []
    value = raw
    for part in location:
        held: Any = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
        if part in held:
            value = _inner(value, part)
        elif not isinstance(part, str) or not re.fullmatch(r"[a-z_]+", part) or part in _KINDS:
            continue
        place.append(part)
        names.append(str(part) if len(str(part)) <= _SHOWN else str(part)[: _SHOWN - 3] + "...")
    return tuple(place), ".".join(names) or "task"


def _inner(value: Any, part: str | int) -> Any:
    return value[part]


def _problem(entry: Mapping[str, Any], mark: Mark | None) -> str:
    kind, value = entry["type"], entry["input"]
    if kind == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    if kind == "missing":
        return "missing; add it"
    if kind in ("int_parsing_size", "int_from_float") and isinstance(value, float) and value.is_integer():
        return "the number is too large; write a smaller one"
    if kind == "string_type" and isinstance(value, bool | int | float):
        written = mark.text if mark and mark.text else str(value)
        read = str(value).lower() if isinstance(value, bool) else "a number"
        return f"text is needed, and YAML reads {written[:_SHOWN]} as {read}; quote it: {json.dumps(written[:_SHOWN])}"
    return str(entry["msg"]).removeprefix("Value error, ")
