"""The prompt template of a task: what is put around a row before the model sees it, in training and ever after."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.core.columns import ABSENT, Column, is_empty, text_of
from lora_ft.core.errors import UsageError


@dataclass(frozen=True)
class Placeholder:
    """One `{column}` of a template.

    Attributes:
        column: column or path that is put there.
        default: text where the row has none, or None where the row must have one.
        literal: a column of exactly this name comes before `column`, as names may end with a question mark.
    """

    column: Column
    default: str | None
    literal: Column

    @property
    def name(self) -> str:
        """Name of the column, without its default."""
        return self.column.name

    def find(self, row: Mapping[str, Any]) -> Any:
        """Return the value of a row, the default where it has none, ABSENT or None where it must have one."""
        if self.default is None or self.literal.name in row:
            return self.literal.find(row)
        value = self.column.find(row)
        return self.default if is_empty(value) else value

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has the column, be it empty."""
        return self.literal.name in row or self.column.find(row) is not ABSENT


class Prompt:
    """A template with placeholders; `{{` and `}}` are braces.

    `{column}` is a column or a path inside one (see `lora_ft.core.columns`), which each row must have.
    `{column?}` may be missing or empty, and is empty then; `{column?none}` is "none" then.

    Attributes:
        template: as written.
        placeholders: the distinct ones, in order of first use.
        columns: their columns, without defaults.

    Raises:
        UsageError: the template is malformed or names no column.
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
        """The column that a bare text fills: the only one that a row must have, or the only one at all; else None."""
        required = dict.fromkeys(place.name for place in self.placeholders if place.default is None)
        names = list(required or dict.fromkeys(self.columns))
        return names[0] if len(names) == 1 else None

    def texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts that a row puts into the placeholders.

        Raises:
            UsageError: the row lacks a column of the template, or holds no text in one.
        """
        return tuple(self._texts(row).values())

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of one row; errors as of `texts`."""
        texts = self._texts(row)
        return "".join(literal + ("" if place is None else texts[place.literal.name]) for literal, place in self._parts)

    def fill_text(self, text: str) -> str:
        """Return the prompt of a bare text, for templates that need one column.

        Raises:
            UsageError: the template needs several.
        """
        if self.single is None:
            raise UsageError(
                f"the prompt {self.template!r} needs the columns {', '.join(self.columns)}",
                "give jsonl rows with these keys, or --raw",
            )
        return self.fill({self.single: text})

    def _texts(self, row: Mapping[str, Any]) -> dict[str, str]:
        texts = {}
        for place in self.placeholders:
            value = place.find(row)
            if value is ABSENT or value is None:
                raise UsageError(
                    f"a row lacks the column '{place.name}' of the prompt {self.template!r}",
                    f"it has {', '.join(map(repr, row)) or 'none'}; use --raw for text that is already a prompt",
                )
            texts[place.literal.name] = text_of(value, place.name)
        return texts


def _parse(template: str) -> list[tuple[str, Placeholder | None]]:
    """Return pairs of literal text and the placeholder after it."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the prompt {template!r} is malformed ({error})", "write a brace as {{ or }}") from error
    for _, name, spec, conversion in fields:
        if name == "" or spec or conversion:
            raise UsageError(f"the prompt {template!r} has a placeholder that is no column's name", "write {column}")
    return [(literal, None if name is None else _placeholder(name)) for literal, name, _, _ in fields]


def _placeholder(name: str) -> Placeholder:
    column, mark, default = name.partition("?")
    optional = mark and column
    return Placeholder(Column(column if optional else name), default if optional else None, Column(name))
