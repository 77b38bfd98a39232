"""Inputs and outputs of `lora-ft generate`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import write_text
from lora_ft.core.streams import answer, is_terminal, say, stdin_lines
from lora_ft.data.formats.content import content_of, kind_of_file
from lora_ft.data.readers import is_readable, read_rows, without_keys
from lora_ft.data.row_lines import row_line

Input = str | Mapping[str, Any]
_COLUMNS = 80
OUTPUT = "output"  # column of the answers in a written file


def read_inputs(texts: Sequence[str], source: Path | None) -> list[Input]:
    """Return the texts, the rows of a file, or the lines of stdin.

    Raises:
        UsageError: There are no inputs, or both texts and a file.
        LoraFtError: The file is damaged.
    """
    if texts and source:
        raise UsageError("--input cannot be combined with texts", "leave out one of them")
    if texts:
        return list(texts)
    if source is not None and is_readable(source):
        rows: list[Input] = [row for _, row in read_rows(Path.cwd(), str(source), "--input")]
    elif source is not None:
        rows = _lines(source)
    elif is_terminal(sys.stdin):
        raise UsageError("there are no inputs", "add a text or --input FILE, or pipe lines to stdin")
    else:
        rows = [line for line in stdin_lines() if line.strip()]
    if not rows:
        raise UsageError(f"{source or 'stdin'} contains no inputs", "use a file or lines with text")
    return rows


def write_outputs(
    rows: Sequence[Input],
    answers: Sequence[str],
    output: Path | None,
    wrap: int | None = None,
    *,
    cut: Sequence[bool] = (),
    as_json: bool = False,
) -> None:
    """Print answers, or write them as jsonl with the columns of their rows.

    Args:
        rows: Texts or rows.
        answers: [rows] answers.
        output: File to write (jsonl).
        wrap: Line width of answers on stdout, in characters. Default: 80 on a terminal, none in a pipe.
        cut: [rows] whether the prompt was cut. Such rows get `"source_cut": true`.
        as_json: Print rows with their answers as a JSON list.
    """
    if output is not None or as_json:
        columns = [{"input": row} if isinstance(row, str) else dict(row) for row in rows]
        marks = [{"source_cut": True} if is_cut else {} for is_cut in cut or [False] * len(rows)]
        lines = [
            row_line({**row, OUTPUT: text, **mark}) for row, text, mark in zip(columns, answers, marks, strict=True)
        ]
        if output is not None:
            write_text(output, "\n".join(lines) + "\n")
        if as_json:
            say("[" + ",\n".join(lines) + "]")
        return
    width = wrap or (_COLUMNS if is_terminal(sys.stdout) else None)
    for text in answers:
        answer(_wrapped(text, width) if width else text)


def _wrapped(text: str, width: int) -> str:
    """Return an answer with long lines wrapped; its own lines and their indentation stay."""
    wrapper = textwrap.TextWrapper(width, break_long_words=False, replace_whitespace=False, expand_tabs=False)
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def _lines(source: Path) -> list[Input]:
    if source.exists() and not source.is_file():
        raise UsageError(f"--input: {source} is {kind_of_file(source)}, not a file", "write its content to a file")
    if not source.is_file():
        raise UsageError(f"--input: {source} does not exist")
    try:
        return _split(content_of(source).text())
    except LoraFtError as error:
        raise without_keys(error) from error


def _split(text: str) -> list[Input]:
    """Return the lines of a text that are not blank. Only CR and LF end a line, not other line breaks of Unicode."""
    return [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
