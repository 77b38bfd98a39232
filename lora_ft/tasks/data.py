"""The section `data` of a task: where its rows come from. `lora_ft.data.splits` reads them."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from lora_ft.tasks.fields import NotNegative, Positive, Real, Section, Seed, Share, Whole
from lora_ft.tasks.rows import RowsInMemory, rows_in_memory


class Split(Section):
    """How to cut missing splits off the training rows; with labels, each gets its share of every label."""

    validation: Share = 0.1
    """Share of the rows for validation, where none is given."""
    test: Share = 0.0
    """Share of the rows for testing, where none is given."""
    seed: Seed = 0
    """Of the shuffle before the cut; sessions of chats are not shuffled."""


class Limits(Section):
    """At most the first so many rows of each split."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class Chat(Section):
    """The files are exports of chats; a row is a message and what precedes it: context, response, sender."""

    format: Literal["auto", "telegram", "whatsapp", "slack", "discord", "messenger", "signal", "line", "kakaotalk"] = (
        "auto"
    )
    """auto: by what the file holds. messenger: also Instagram's."""
    only: list[str] | None = None
    """Chats of an export of several, by name; by default all. A topic or thread is named "chat › topic"."""
    forwarded: bool = False
    """Keep what somebody forwarded; by default it is left out, as others wrote it."""
    bots: bool = False
    """Keep what bots wrote, and what was sent through one; by default it is left out."""
    leave_out: list[str] | None = None
    """Names of people whose messages are left out, e.g. bots that an export does not mark."""
    keep: Positive = 20_000
    """The newest so many messages of each file."""
    gap_minutes: Annotated[Real, Field(gt=0, le=10**7)] = 120
    """A session ends where nobody speaks for longer."""
    context: Positive = 10
    """Most messages of a context."""
    before: NotNegative = 5
    """Messages from before the session, where fewer than two precede within it."""
    characters: Annotated[Whole, Field(ge=80, le=10**7)] = 1500
    """Longest context; the oldest messages leave first. Prompts are cut at their end, where the newest ones are."""
    anonymize: bool = False
    """Give everybody another name, also in mentions and texts."""
    seed: Seed = 0
    """Of the other names."""


class Data(Section):
    """Where rows come from: a data set on the hub (`hub`), or local jsonl, json, csv, tsv or parquet files.

    Files may be compressed (.gz, .bz2, .xz, .zst, .zip). Columns may lie inside others: `translation.en`,
    `answers.text`, `messages[-1].content`. Cells are text, numbers, or true and false, which are written like this;
    references may be lists of them. Anything else is refused.
    """

    hub: str | None = None
    """Name of a data set on the hub; `train`, `validation` and `test` are then names of its splits."""
    config: str | None = None
    """Configuration of the hub data set."""
    revision: str | None = None
    """Revision of the hub data set."""
    root: Path | None = None
    """Folder that relative file names start from; by default the folder of the task file."""
    train: str | list[str] | None = None
    """File, glob or list of them."""
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    chat: Chat | None = None
    """The files are exports of chats instead; data.split then cuts whole sessions, the newest for testing."""
    encoding: str | None = None
    """Encoding of text files, by Python's name, e.g. cp1252; by default UTF-8, or that of a byte order mark."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Character between the cells of csv and tsv; by default found among , ; tab and |."""
    field: str | None = None
    """Where the rows are in a JSON object, e.g. data; by default its only list of objects."""
    target: str = "target"
    """Column with the text to be generated."""
    references: str | None = None
    """Column with a list of acceptable texts to score against, instead of `target` alone."""
    split: Split | None = None
    limit: Limits = Limits()
    skip_empty: bool = False
    """Leave out rows with an empty cell instead of refusing them; how many is said."""
    oversample: bool = False
    """With labels: repeat training rows until every label is as frequent as the commonest one."""

    @field_validator("train", "validation", "test", mode="wrap")
    @classmethod
    def _rows_or_files(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        rows = rows_in_memory(value, str(info.field_name))
        return check(value) if rows is None else rows

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else check_encoding(value)

    @field_validator("delimiter")
    @classmethod
    def _usable_delimiter(cls, value: str | None) -> str | None:
        if value is not None and value in '"\\\r\n ':
            raise ValueError("a delimiter is a character between cells, e.g. ; or |")
        return value

    @model_validator(mode="after")
    def _has_rows(self) -> Data:
        if self.chat is not None and self.hub is not None:
            raise ValueError("chat reads local files; remove hub")
        if self.in_memory and (self.chat is not None or self.hub is not None):
            raise ValueError(f"{'hub' if self.hub else 'chat'} excludes rows in memory; remove one of the two")
        for name in ("encoding", "delimiter", "field"):
            if getattr(self, name) is not None and (self.hub is not None or self.chat is not None):
                raise ValueError(f"{name} is for files of rows; remove it, or {'hub' if self.hub else 'chat'}")
        if self.chat is not None and "target" not in self.model_fields_set:
            self.target = "response"
        if self.train is None and self.hub is not None:
            self.train = "train"
        if self.train is None and self.validation is None and self.test is None:
            raise ValueError("no rows are named; set train (a file, glob or list), or hub")
        return self

    @property
    def in_memory(self) -> dict[str, RowsInMemory]:
        """Rows of a task made in Python, by split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in splits.items() if isinstance(rows, RowsInMemory)}


def check_encoding(name: str) -> str:
    """Return the name of an encoding, if it is one of text; raise ValueError otherwise."""
    try:
        known = codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError) as error:
        raise ValueError(f"unknown encoding {name!r}; use a name of Python's, e.g. cp1252 or utf-16") from error
    if not known:
        raise ValueError(f"{name} is no encoding of text; use a name of Python's, e.g. cp1252 or utf-16")
    return name
