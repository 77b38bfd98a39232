"""Section `data` of a task: the source of its rows, which `lora_ft.data.splits` reads."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from lora_ft.tasks.fields import NotNegative, Positive, Real, Section, Seed, Share, Whole
from lora_ft.tasks.rows import RowsInMemory, rows_in_memory


class Split(Section):
    """Splits to cut off the training rows if they are missing. With labels, the cut is stratified."""

    validation: Share = 0.1
    """Share of the training rows used for validation if data.validation is missing."""
    test: Share = 0.0
    """Share of the training rows used for testing if data.test is missing."""
    seed: Seed = 0
    """Seed of the shuffle before the cut. Sessions of chats are not shuffled."""


class Limits(Section):
    """Maximum number of rows of each split; the first ones are used."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class Chat(Section):
    """Settings of chat exports. A row is a message and its context, in the columns context, response and sender."""

    format: Literal["auto", "telegram", "whatsapp", "slack", "discord", "messenger", "signal", "line", "kakaotalk"] = (
        "auto"
    )
    """Program of the export. auto: recognized by content. messenger: includes Instagram."""
    only: list[str] | None = None
    """Names of the chats to read. Default: all. A topic or thread is named "chat › topic"."""
    forwarded: bool = False
    """Keep forwarded messages. Default: leave them out, since other people wrote them."""
    bots: bool = False
    """Keep messages from bots, and messages sent through one. Default: leave them out."""
    leave_out: list[str] | None = None
    """Names of people whose messages are left out, e.g. bots that the export does not mark."""
    keep: Positive = 20_000
    """Maximum number of messages of each file; the newest ones are used."""
    gap_minutes: Annotated[Real, Field(gt=0, le=10**7)] = 120
    """Minutes of silence that end a session."""
    context: Positive = 10
    """Maximum number of messages in a context."""
    before: NotNegative = 5
    """Number of messages taken from before the session if fewer than two precede within it."""
    characters: Annotated[Whole, Field(ge=80, le=10**7)] = 1500
    """Maximum length of a context, in characters; the oldest messages are dropped first. Keep it below lengths.source,
    since prompts are cut at their end, where the newest messages are."""
    anonymize: bool = False
    """Replace the names of all senders, also in texts, and of people mentioned with @. Other names in texts stay."""
    seed: Seed = 0
    """Seed of the replacement names."""


class Data(Section):
    """Source of rows: a data set on the hub (`hub`), or local jsonl, json, csv, tsv or parquet files.

    Files may be compressed (.gz, .bz2, .xz, .zst, .zip). Columns may lie inside others: `translation.en`,
    `answers.text`, `messages[-1].content`. Cells hold text, numbers, true or false; references
    may be lists of them. Anything else is an error.
    """

    hub: str | None = None
    """Name of a data set on the hub. `train`, `validation` and `test` are then names of its splits."""
    config: str | None = None
    """Configuration of the hub data set."""
    revision: str | None = None
    """Revision of the hub data set."""
    root: Path | None = None
    """Folder that relative paths start from. Default: the folder of the task file."""
    train: str | list[str] | None = None
    """Training rows: a file, a glob, or a list of them."""
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    chat: Chat | None = None
    """Read the files as chat exports. data.split then cuts whole sessions, the newest for testing."""
    encoding: str | None = None
    """Encoding of text files, by Python's name, e.g. cp1252. Default: that of a byte order mark, else UTF-8."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Character between the cells of csv and tsv. Default: detected among , ; tab and |."""
    field: str | None = None
    """Path of the rows in a JSON object, e.g. data. Default: its only list of objects."""
    target: str = "target"
    """Column with the text to generate."""
    references: str | None = None
    """Column with a list of acceptable texts; scores compare with all of them instead of `target` alone."""
    split: Split | None = None
    limit: Limits = Limits()
    skip_empty: bool = False
    """Leave out rows with an empty cell, and report how many. Default: such rows are an error."""
    oversample: bool = False
    """With labels: repeat training rows until every label is as frequent as the most frequent one."""

    @field_validator("train", "validation", "test", mode="wrap")
    @classmethod
    def _rows_or_files(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        rows = rows_in_memory(value, str(info.field_name))
        return check(value) if rows is None else rows

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else check_encoding(value)

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, value: Any) -> Any:
        # YAML reads an unquoted \t, or one in single quotes, as two characters.
        return "\t" if value == r"\t" else value

    @field_validator("delimiter")
    @classmethod
    def _usable_delimiter(cls, value: str | None) -> str | None:
        if value is not None and value in '"\\\r\n ':
            raise ValueError("a quote, backslash, blank or line break cannot be a delimiter; use one like ; or |")
        return value

    @model_validator(mode="after")
    def _has_rows(self) -> Data:
        if self.chat is not None and self.hub is not None:
            raise ValueError("chat reads local files; remove hub")
        if self.in_memory and (self.chat is not None or self.hub is not None):
            raise ValueError(f"rows in memory exclude {'hub' if self.hub else 'chat'}; remove one of the two")
        for name in ("encoding", "delimiter", "field"):
            if getattr(self, name) is not None and (self.hub is not None or self.chat is not None):
                raise ValueError(f"{name} is for files of rows; remove it, or {'hub' if self.hub else 'chat'}")
        if self.chat is not None and "target" not in self.model_fields_set:
            self.target = "response"
        if self.train is None and self.hub is not None:
            self.train = "train"
        if self.train is None and self.validation is None and self.test is None:
            raise ValueError("no source of rows is set; set train (a file, glob or list), or hub")
        return self

    @property
    def in_memory(self) -> dict[str, RowsInMemory]:
        """Rows of a task created in Python, by split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in splits.items() if isinstance(rows, RowsInMemory)}


def check_encoding(name: str) -> str:
    """Return the name of a text encoding; raise ValueError if it is unknown or encodes something else."""
    try:
        is_text = codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError) as error:
        raise ValueError(f"unknown encoding {name!r}; use one of Python's names, e.g. cp1252 or utf-16") from error
    if not is_text:
        raise ValueError(f"{name} is not a text encoding; use one of Python's names, e.g. cp1252 or utf-16")
    return name
