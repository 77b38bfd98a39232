"""The prompt template of a task: what is put around a row before the model sees it, in training and ever after."""

from __future__ import annotations

import string
from collections.abc import Mapping

from export.errors import UsageError


class Prompt:
    """A template with `{column}` placeholders (`{{` and `}}` are braces).

    Attributes:
        template: as written.
        columns: the columns it names, in order of first use.

    Raises:
        UsageError: the template is malformed or names no column.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts = _parse(template)
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column is not None))
        if not self.columns:
            raise UsageError(f"the prompt {template!r} names no column", "write one as {column}, e.g. {dialogue}")

    def fill(self, row: Mapping[str, object]) -> str:
        """The prompt of one row.

        Raises:
            UsageError: the row lacks a column of the template.
        """
        missing = [name for name in self.columns if row.get(name) is None]
        if missing:
            raise UsageError(
                f"a row lacks the column '{missing[0]}' of the prompt {self.template!r}",
                f"it has {', '.join(map(repr, row)) or 'none'}; use --raw for text that is already a prompt",
            )
        return "".join(literal + ("" if column is None else str(row[column])) for literal, column in self._parts)

    def fill_text(self, text: str) -> str:
        """The prompt of a bare text, for templates of one column.

        Raises:
            UsageError: the template has several columns.
        """
        if len(self.columns) != 1:
            raise UsageError(
                f"the prompt {self.template!r} needs the columns {', '.join(self.columns)}",
                "give jsonl rows with these keys, or --raw",
            )
        return self.fill({self.columns[0]: text})


def _parse(template: str) -> list[tuple[str, str | None]]:
    """(literal text, column after it) pairs."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the prompt {template!r} is malformed ({error})", "write a brace as {{ or }}") from error
    for _, name, spec, conversion in fields:
        if name == "" or spec or conversion:
            raise UsageError(f"the prompt {template!r} has a placeholder that is no column's name", "write {column}")
    return [(literal, name) for literal, name, _, _ in fields]
