"""Errors of a task: the key, its value, the problem, and the line of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import Repr
from typing import Any

from pydantic import ValidationError

from lora_ft.core.errors import TaskError
from lora_ft.core.shell_command import shell_command
from lora_ft.tasks.plain_yaml import Mark, Place

_SHOWN = 60  # characters
# Names of the parts of a union in pydantic's error locations.
_KINDS = frozenset(("int", "str", "float", "bool", "list", "dict", "none"))
_short = Repr()
_short.maxlist = _short.maxdict = _short.maxtuple = 4
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 2 * _SHOWN


def shown(value: Any) -> str:
    """Return a value as shown in messages, in at most 60 characters."""
    text = repr(value[: 2 * _SHOWN]) if isinstance(value, str) else _short.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


@dataclass(frozen=True)
class ErrorDetails:
    """One error of a task.

    Attributes:
        key: Path of the key, such as `train.seed`.
        value: Value of the key.
        problem: Description of the error, and the remedy.
        line: Line of the task file, or 0 if the value comes from elsewhere.
    """

    key: str
    value: Any
    problem: str
    line: int = 0

    def __str__(self) -> str:
        place = f" (line {self.line})" if self.line else ""
        return f"{self.key} = {shown(self.value)}: {self.problem}{place}"


class InvalidTaskError(TaskError):
    """An invalid task, with all of its errors.

    Attributes:
        path: File of the task, or None for a task created in Python.
        errors: All errors.
    """

    def __init__(self, path: Path | None, errors: Sequence[ErrorDetails]) -> None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        shown = f"`{shell_command('validate', path)}` shows all" if path else "see `errors` of this error"
        remedy = shown if more else ""
        super().__init__(f"{path or 'the task'}: {errors[0]}{more}", remedy)
        self.path, self.errors = path, list(errors)


def error_details(error: ValidationError, raw: Any, marks: Mapping[Place, Mark]) -> list[ErrorDetails]:
    """Return pydantic's errors as error details, one for each key.

    Args:
        error: Validation error of a task.
        raw: Content that was validated.
        marks: Lines of its values in the file, if known.
    """
    by_place: dict[tuple[str, int], ErrorDetails] = {}
    for entry in error.errors(include_url=False):
        place, key = _place(entry["loc"], raw)
        mark = marks.get(place)
        problem = _problem(entry, mark)
        value = None if entry["type"] == "missing" else entry["input"]
        details = ErrorDetails(key, value, problem, mark.line if mark else 0)
        earlier = by_place.setdefault((key, details.line), details)
        if earlier is not details and problem not in earlier.problem:  # from another part of a union
            by_place[key, details.line] = replace(earlier, problem=f"{earlier.problem}; or {problem}")
    return list(by_place.values())


def _place(location: Sequence[str | int], raw: Any) -> tuple[Place, str]:
    """Return the path of a value, and its key, without the union parts that pydantic adds to a path."""
    place: list[str | int] = []
    names: list[str] = []
    value = raw
    for part in location:
        keys: Any = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
        if part in keys:
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
        is_number = str(entry["loc"][-1]).isdecimal() and value is None  # {a: 0,1} is {a: 0, 1: null}
        remedy = "write a decimal point, not a comma" if is_number else "remove it or correct its spelling"
        return f"unknown key; {remedy}"
    if kind == "string_pattern_mismatch" and entry["loc"] == ("name",):
        return "not a name; use letters from A to Z, digits and . _ -, with a letter or a digit first"
    if kind == "model_type":
        return "not a section; write its keys below it, or in braces"
    if kind == "missing":
        return "missing; add it"
    if kind in ("int_parsing_size", "int_from_float") and isinstance(value, float) and value.is_integer():
        return "the number is too large; write a smaller one"
    if kind == "string_type" and value is None and not (mark and mark.text):
        return "empty; write a text"
    if kind == "string_type" and (value is None or isinstance(value, bool | int | float)):
        source = mark.text if mark and mark.text else str(value)
        kind_read = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else "a number"
        return f"not text, since YAML reads {source[:_SHOWN]} as {kind_read}; quote it: {json.dumps(source[:_SHOWN])}"
    return str(entry["msg"]).removeprefix("Value error, ")
