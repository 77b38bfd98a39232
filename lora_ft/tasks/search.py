"""Search spaces: the keys of a task that `lora-ft search` varies, each with a list of values or a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from lora_ft.tasks.error_details import ErrorDetails, InvalidTaskError, error_details
from lora_ft.tasks.fields import Section, Whole
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.plain_yaml import Mark, Place
from lora_ft.tasks.schema import Task
from lora_ft.tasks.train import Train

SEARCH = "search"  # key of a task file that maps keys to values or ranges
_SECTIONS: dict[str, type[Section]] = {"lora": Lora, "train": Train}
_SET_BY_SEARCH = {"train.seed", "train.eval_every"}
_SAME_IN_ALL = {
    "train.metric_for_best_model",
    "train.precision",
    "train.compile",
    "train.gradient_checkpointing",
    "train.per_device_eval_batch_size",
    "train.save_total_limit",
    "train.logging_steps",
    "train.report_to",
}


class Range(Section):
    """Range of numbers, with both bounds included."""

    low: Whole | float
    """Smallest value."""
    high: Whole | float
    """Largest value."""
    log: bool = False
    """Sample the logarithm evenly, for values that span orders of magnitude."""

    @model_validator(mode="after")
    def _ascends(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is not below high (got {self.low:g} and {self.high:g}); exchange or change them")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, which has no logarithm; raise it, or remove log")
        return self


Values = Annotated[list[Any], Field(min_length=1)] | Range


class SearchSection(Section):
    """The space of a search. Keys are those of `lora` and `train`, by their dotted names."""

    search: Annotated[dict[str, Values], Field(min_length=1)]
    """Keys by their dotted names, each with a list of values or a range."""


@dataclass(frozen=True)
class Space:
    """Checked space of a search.

    Attributes:
        values: List of values or range of each key.
        integers: Keys whose ranges contain whole numbers only.
    """

    values: Mapping[str, list[Any] | Range]
    integers: frozenset[str]

    @property
    def size(self) -> float:
        """Number of combinations; infinite with a range of real numbers."""
        return math.prod(self._count(key, values) for key, values in self.values.items())

    def _count(self, key: str, values: list[Any] | Range) -> float:
        if isinstance(values, list):
            return len(values)
        return values.high - values.low + 1 if key in self.integers else math.inf

    def extremes(self, key: str) -> list[Any]:
        """Return all values of a list, or the bounds of a range."""
        values = self.values[key]
        return values if isinstance(values, list) else [values.low, values.high]


def with_settings(task: Task, settings: Mapping[str, Any]) -> Task:
    """Return a task with values set by their dotted keys of `lora` and `train`.

    Raises:
        InvalidTaskError: The task does not allow them.
    """
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, getattr(task, section).model_dump(exclude_unset=True))[name] = value
    return Task.model_validate(dict(task) | sections)


def read_space(content: Any, task: Task, file: Path | None = None, marks: Mapping[Place, Mark] | None = None) -> Space:
    """Return the space of a search after checking each key and each value against the schema of tasks.

    Args:
        content: Mapping from keys to lists of values, or to `low`, `high` and `log`.
        task: Task whose keys are varied.
        file: Task file that contains the space, for errors.
        marks: Lines of the file's values, for errors.

    Raises:
        InvalidTaskError: The space has errors; the exception lists all of them.
    """
    marks = marks or {}
    try:
        values = SearchSection.model_validate({SEARCH: content}).search
    except ValidationError as error:
        raise InvalidTaskError(file, error_details(error, {SEARCH: content}, marks)) from error
    errors: list[ErrorDetails] = []
    integers = set()
    for key, choices in values.items():
        if problem := _key_problem(key):
            errors.append(_located((key,), content[key], problem, marks))
            continue
        ends: Sequence[tuple[int | str, Any]] = (
            list(enumerate(choices)) if isinstance(choices, list) else [("low", choices.low), ("high", choices.high)]
        )
        for place, value in ends:
            if isinstance(choices, list) and value in choices[: int(place)]:
                errors.append(_located((key, place), value, "the value is listed twice; remove one", marks))
            try:
                checked = _value(with_settings(task, {key: value}), key)
            except InvalidTaskError as error:
                errors.append(_located((key, place), value, error.errors[0].problem, marks))
                continue
            if isinstance(choices, Range) and isinstance(checked, int):
                integers.add(key)
    if errors:
        raise InvalidTaskError(file, errors)
    return Space(values, frozenset(integers))


def _value(task: Task, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(task, section), name)


def _key_problem(key: str) -> str:
    """Return the reason why a key cannot be searched, with the remedy, or ""."""
    section, _, name = key.partition(".")
    if section not in _SECTIONS:
        return "only keys of lora and train can be searched; remove it, or compare tasks with several train commands"
    if name not in _SECTIONS[section].model_fields:
        return "unknown key; correct its spelling"
    if key in _SET_BY_SEARCH:
        return "the search sets it itself; remove it"
    if key in _SAME_IN_ALL:
        return "it is the same in all trials; set it in the task"
    if key == "lora.preset":
        return "a preset only fills in other keys; search those, e.g. lora.r and lora.target_modules"
    return ""


def _located(path: tuple[str | int, ...], value: Any, problem: str, marks: Mapping[Place, Mark]) -> ErrorDetails:
    place: Place = (SEARCH, *path)
    mark = marks.get(place)
    return ErrorDetails(".".join(map(str, place)), value, problem, mark.line if mark else 0)
