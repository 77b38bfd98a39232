"""Convert rows to examples: check every cell, fill the prompt, and count cells that look empty or malformed."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from lora_ft.core.codecs import codec_named
from lora_ft.core.columns import ABSENT, Column, is_empty, lookalike, names_of, text_of
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.prompt import Prompt
from lora_ft.data.formats.content import MAX_CELL, Located, Row
from lora_ft.data.labels import require_label
from lora_ft.tasks.schema import Task

# Spellings of a missing value in text written by spreadsheets, pandas, R and databases.
_MISSING = frozenset(("nan", "null", "none", "na", "n/a", "#n/a", "<na>", "nat", "\\n"))  # \N of MySQL, in lower case
_BY_PROGRAMS = _MISSING - {"none", "na", "n/a"}  # no label on purpose, although `labels: auto` finds it
_PYTHON = re.compile(r"\s*(?:\{'\w+': |\['|\[\{'|array\(\[)")
_JSON = re.compile(r'\s*(?:\{"\w+": ?|\["|\[\{")')


@dataclass(frozen=True)
class Example:
    """A row as a prompt, a target and references.

    Attributes:
        prompt: Text that the model reads, before the task's codec.
        target: Text that the model learns to write, before the task's codec.
        references: Texts against which the answer is scored, at least one.
        row: Columns of the row.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    row: Row = field(compare=False, hash=False)


@dataclass(frozen=True)
class Survey:
    """The usable rows of a source, with warnings.

    Attributes:
        rows: Rows that are kept, with their locations.
        left_out: Number of rows left out.
        warnings: Sentences about likely mistakes, with counts.
    """

    rows: list[Located]
    left_out: int
    warnings: list[str]


class ExampleMaker:
    """A converter of rows into the examples of a task.

    Args:
        task: Task with the columns, the prompt, the codec and the labels.
    """

    def __init__(self, task: Task) -> None:
        self._prompt, self._codec, self._labels = Prompt(task.prompt), codec_named(task.codec), task.known_labels
        self._target = Column(task.data.target)
        self._references = Column(task.data.references) if task.data.references is not None else None
        self._skips, self._has_labels = task.data.skip_empty, task.labels is not None

    def survey(self, rows: Sequence[Located], split: str) -> Survey:
        """Leave out rows with an empty cell if data.skip_empty is set, and count likely mistakes.

        Raises:
            UsageError: No row is left.
        """
        usable: list[Located] = []
        left_out: Counter[str] = Counter()
        words: defaultdict[str, Counter[str]] = defaultdict(Counter)
        reprs: defaultdict[str, list[str]] = defaultdict(list)
        first: dict[str, str] = {}
        optional = [place for place in self._prompt.placeholders if place.default is not None]
        unseen = optional
        empty_references = 0
        for where, row in rows:
            cells = self._cells(row, split)
            empty = next((name for name, value in cells.items() if value is not ABSENT and is_empty(value)), None)
            if empty is not None and self._skips:
                left_out[empty] += 1
                continue
            usable.append((where, row))
            references = cells.get(self._references.name) if self._references is not None else None
            empty_references += sum(map(is_empty, references)) if isinstance(references, list) else 0
            for name, value in {**cells, **{place.name: place.find(row) for place in optional}}.items():
                if _is_repr(value, in_json=self._references is not None and name == self._references.name):
                    reprs[name].append(where)
                for word in _missing_words(value):
                    if name != self._target.name or word not in self._labels or word.lower() in _BY_PROGRAMS:
                        words[name][word] += 1
                        first.setdefault(name, where)
            unseen = [place for place in unseen if not place.is_in(row)]
        if rows and not usable:
            raise UsageError(f"data.{split}: every row has an empty cell", "check the columns that the task names")
        warnings = [
            f"{split}: column '{name}': {counts.total():,} of {len(usable):,} cells are {_either(counts)} as text, "
            f"first in {first[name]}; leave missing values empty"
            for name, counts in words.items()
        ]
        warnings += [
            f"{split}: column '{name}': {len(places):,} of {len(usable):,} cells are lists or objects written as text, "
            f"first in {places[0]}; write the rows as JSON Lines or parquet, and name the text inside"
            for name, places in reprs.items()
        ]
        warnings += [
            f"{split}: no row has the column '{place.name}', which is optional in the prompt" for place in unseen
        ]
        if empty_references and self._references is not None:
            warnings.append(
                f"{split}: column '{self._references.name}': {empty_references:,} empty or null references in "
                f"{len(usable):,} rows are left out"
            )
        if left_out:
            columns = " and ".join(f"column '{name}' is empty in {count:,}" for name, count in left_out.items())
            warnings.append(f"{split}: {left_out.total():,} of {len(rows):,} rows left out (skip_empty): {columns}")
        return Survey(usable, left_out.total(), warnings)

    def target(self, where: str, row: Row, split: str) -> str:
        """Return the target of a row.

        Raises:
            UsageError: The row lacks a column, or a cell does not hold text.
            LoraFtError: A cell is empty or cannot be encoded, or the target is not one of the task's labels.
        """
        self._check(where, self._cells(row, split), row)
        text = self._text(self._target.find(row), self._target.name, where)
        if self._has_labels:  # a blank around a label would be a token of its own, which no answer can have
            text = text.strip()
        if self._labels:
            require_label(text, self._labels, where)
        return text

    def example(self, where: str, row: Row, split: str) -> Example:
        """Return the example of a row. Raises the errors of `target`."""
        target = self.target(where, row, split)
        prompt = self._filled(where, row)
        references: tuple[str, ...] = (target,)
        if (several := self._several(row, split)) is not None:
            value = several.find(row)
            values = [item for item in value if not is_empty(item)] if isinstance(value, list) else [value]
            references = tuple(self._text(item, several.name, where, several=True) for item in values)
        for text in references if self._labels else ():
            require_label(text, self._labels, where)
        return Example(prompt, target, references, row)

    def _several(self, row: Row, split: str) -> Column | None:
        """Return the column of references, or None; training rows may lack it, since they need only a target."""
        if self._references is None or (split == "train" and self._references.find(row) is ABSENT):
            return None
        return self._references

    def _cells(self, row: Row, split: str) -> dict[str, Any]:
        """Return the value of each column that a row must have."""
        cells = {place.name: place.find(row) for place in self._prompt.placeholders if place.default is None}
        cells[self._target.name] = self._target.find(row)
        if (several := self._several(row, split)) is not None:
            cells[several.name] = several.find(row)
        return cells

    def _check(self, where: str, cells: dict[str, Any], row: Row) -> None:
        for name, value in cells.items():
            if value is ABSENT and (alike := lookalike(row, name)):
                raise UsageError(
                    f"{where} has no column {name!a}",
                    f"it has {alike!a}, which looks alike; copy the name from the file",
                )
            if value is ABSENT:
                delimiter = ", or set data.delimiter" if _is_undivided(row) else ""
                raise UsageError(
                    f"{where} has no column '{name}'",
                    f"it has {names_of(row)}; correct prompt, data.target or data.references{delimiter}",
                )
            if is_empty(value):
                optional = f"write {{{name}?}} in the prompt if it may be, " if name in self._prompt.columns else ""
                raise LoraFtError(
                    f"{where}: column '{name}' is empty",
                    f"fill it, {optional}or set data.skip_empty=true to leave such rows out",
                )

    def _filled(self, where: str, row: Row) -> str:
        try:
            prompt = self._prompt.fill(row)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", error.remedy) from error
        if len(prompt) > MAX_CELL or not _is_whole(prompt):
            for name, text in zip(self._prompt.placeholders, self._prompt.texts(row), strict=True):
                _require_sound(text, name.name, where)
        return prompt

    def _text(self, value: Any, column: str, where: str, *, several: bool = False) -> str:
        """Return the text of a target or reference, in the form in which the codec decodes it."""
        try:
            if self._codec.nests and not isinstance(value, str):
                text = _json(value, column)
            elif isinstance(value, list) and not several:
                text_of(value, column)
                raise AssertionError
            else:
                text = text_of(value, column, several=several)
        except UsageError as error:
            lists = isinstance(value, list) and not several and not self._codec.nests
            more = "; several acceptable targets belong in data.references" if lists else ""
            raise UsageError(f"{where}: {error.message}", error.remedy + more) from error
        _require_sound(text, column, where)
        try:
            return self._codec.canonical(text)
        except UsageError as error:
            raise LoraFtError(f"{where}: column '{column}': {error.message}", error.remedy) from error


def _is_undivided(row: Row) -> bool:
    """Return whether a single column may hide several, because the delimiter was not recognized (`input^target`)."""
    return len(row) == 1 and all(isinstance(name, str) and re.search(r"\w[^\w\s.-]\w", name) for name in row)


def _json(value: Any, column: str) -> str:
    """Return a value as JSON text; types that JSON lacks are converted or refused as in `text_of`."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda item: _plain(item, column))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"column '{column}' holds a number that JSON lacks (NaN or Infinity)", "write null or text"
        ) from error


def _plain(value: Any, column: str) -> Any:
    """Return a value of a type that JSON lacks as a number or text."""
    return float(value) if isinstance(value, Decimal) and value.is_finite() else text_of(value, column)


def _require_sound(text: str, column: str, where: str) -> None:
    """Raise LoraFtError if a text is not valid Unicode, or too long to tokenize."""
    if not _is_whole(text):
        raise LoraFtError(
            f"{where}: column '{column}' holds half a character (a lone surrogate)", "write the text as UTF-8"
        )
    if len(text) > MAX_CELL:
        raise LoraFtError(
            f"{where}: column '{column}' has {len(text):,} characters (at most {MAX_CELL:,})", "cut it into rows"
        )


def _is_whole(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8. JSON escapes can hold a lone surrogate, "\\ud83d"."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _missing_words(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, str) and len(item) < 8 and item.strip().lower() in _MISSING:
            yield item.strip()


def _is_repr(value: Any, *, in_json: bool) -> bool:
    """Return whether a cell is a list or dict written as text, as in tables exported to CSV.

    Python's notation always counts. JSON counts only with `in_json`, for references: a target may be JSON on purpose.
    """
    if not isinstance(value, str):
        return False
    return _PYTHON.match(value) is not None or (in_json and _JSON.match(value) is not None)


def _either(words: Counter[str]) -> str:
    """Return words in quotes, most frequent first: "'nan', 'NULL' or 'None'"."""
    quoted = [f"'{word}'" for word, _ in words.most_common()]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
