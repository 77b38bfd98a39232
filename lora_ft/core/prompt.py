"""Prompt template of a task, which turns a row into the model's input, in training and in inference."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.core.columns import ABSENT, Column, is_empty, lookalike, text_of
from lora_ft.core.errors import UsageError


@dataclass(frozen=True)
class Placeholder:
    """One `{column}` of a template.

    Attributes:
        column: Column or path that fills the placeholder.
        default: Text for rows without a value, or None if every row needs a value.
        literal: Column with the exact name, which precedes `column` since names may end with a question mark.
    """

    column: Column
    default: str | None
    literal: Column

    @property
    def name(self) -> str:
        """Name of the column, without its default."""
        return self.column.name

    def find(self, row: Mapping[str, Any]) -> Any:
        """Return the row's value, else the default, else ABSENT or None if a required value is missing."""
        if self.default is None or self.literal.name in row:
            return self.literal.find(row)
        value = self.column.find(row)
        return self.default if is_empty(value) else value

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Return True if a row has the column, even if its value is empty."""
        return self.literal.name in row or self.column.find(row) is not ABSENT


class Prompt:
    """A template with placeholders; `{{` and `}}` are braces.

    `{column}` is a required column or a path inside one (see `lora_ft.core.columns`). `{column?}` is optional, and the
    empty string if its value is missing or empty. `{column?none}` is optional with the default "none".

    Attributes:
        template: Template, as written.
        placeholders: Distinct placeholders, in order of first use.
        columns: Columns of the placeholders, without defaults.

    Raises:
        UsageError: The template is malformed or names no column.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts = _parse(template)
        distinct = {place.literal.name: place for _, place in self._parts if place is not None}
        self.placeholders = tuple(distinct.values())
        self.columns = tuple(dict.fromkeys(place.name for place in self.placeholders))
        if not self.columns:
            raise UsageError(f"the prompt {template!r} names no column", "write one as {column}, e.g. {dialogue}")

    @property
    def single(self) -> str | None:
        """Column that a bare text fills: the only required one, or the only one if none is required; else None."""
        required = dict.fromkeys(place.name for place in self.placeholders if place.default is None)
        names = list(required or dict.fromkeys(self.columns))
        return names[0] if len(names) == 1 else None

    def texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts of a row for the placeholders, in order of first use.

        Raises:
            UsageError: The row lacks a column of the template, or a column does not hold text.
        """
        return tuple(self._texts(row).values())

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of one row; raise the errors of `texts`."""
        texts = self._texts(row)
        return "".join(literal + ("" if place is None else texts[place.literal.name]) for literal, place in self._parts)

    def fill_text(self, text: str) -> str:
        """Return the prompt of a bare text, for templates that need only one column.

        Raises:
            UsageError: The template needs several columns, or the text is a row as JSON.
        """
        if self.single is None:
            raise UsageError(
                f"the prompt {self.template!r} needs the columns {', '.join(self.columns)}",
                "give jsonl rows with these keys, or --raw",
            )
        if _is_row(text, self.single):
            raise UsageError(
                f"the text is a JSON object with the column '{self.single}' of the prompt",
                "give it as a jsonl row, or use --raw for a prompt as it is",
            )
        return self.fill({self.single: text})

    def _texts(self, row: Mapping[str, Any]) -> dict[str, str]:
        texts = {}
        for place in self.placeholders:
            value = place.find(row)
            if value is None:
                raise UsageError(
                    f"a row lacks the column '{place.name}' of the prompt {self.template!r}: its value is null",
                    f"fill it, or write {{{place.name}?}} in the prompt if it may be empty",
                )
            if value is ABSENT and (alike := lookalike(row, place.name)):
                raise UsageError(
                    f"a row lacks the column {place.name!a} of the prompt {self.template!r}",
                    f"it has {alike!a}, which looks alike; use the name in the prompt",
                )
            if value is ABSENT:
                raise UsageError(
                    f"a row lacks the column '{place.name}' of the prompt {self.template!r}",
                    f"it has {', '.join(map(repr, row)) or 'none'}; use --raw for text that is already a prompt",
                )
            texts[place.literal.name] = text_of(value, place.name)
        return texts


def _is_row(text: str, column: str) -> bool:
    """Return whether a text is a JSON object that fills a column."""
    try:
        row = json.loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(Column(column).find(row), str | int | float)


def _parse(template: str) -> list[tuple[str, Placeholder | None]]:
    """Return pairs of literal text and the placeholder after it."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the prompt {template!r} is malformed ({error})", "write a brace as {{ or }}") from error
    for _, name, spec, conversion in fields:
        if name and (spec or conversion):
            raise UsageError(
                f"the placeholder of {name!r} in the prompt {template!r} has a colon or an exclamation mark",
                "remove it; rename a column with such a mark in its name",
            )
        if name == "" or spec or conversion:
            raise UsageError(f"the prompt {template!r} has a placeholder without a column name", "write {column}")
    return [(literal, None if name is None else _placeholder(name)) for literal, name, _, _ in fields]


def _placeholder(name: str) -> Placeholder:
    column, mark, default = name.partition("?")
    optional = mark and column
    return Placeholder(Column(column if optional else name), default if optional else None, Column(name))
