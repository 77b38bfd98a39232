"""What `lora-ft generate` reads and writes."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.errors import LoraFtError, UsageError
from export.files import write_text
from lora_ft.cli.output import answer, is_terminal, stdin_lines
from lora_ft.readers import READERS, read_rows

Input = str | Mapping[str, Any]
_COLUMNS = 80


def read_inputs(texts: Sequence[str], source: Path | None) -> list[Input]:
    """The texts given, the rows of a file, or the lines of stdin.

    Raises:
        UsageError: nothing to answer, or both texts and a file.
        LoraFtError: the file is damaged.
    """
    if texts and source:
        raise UsageError("both texts and --input were given", "give one of them")
    if texts:
        return list(texts)
    if source is not None and source.suffix.lower() in READERS:
        rows: list[Input] = [row for _, row in read_rows(Path.cwd(), str(source), "--input")]
    elif source is not None:
        rows = _lines(source)
    elif is_terminal(sys.stdin):
        raise UsageError("nothing to answer", "give a text, --input FILE, or lines on stdin")
    else:
        rows = [line for line in stdin_lines() if line.strip()]
    if not rows:
        raise UsageError(f"{source or 'stdin'} holds nothing to answer")
    return rows


def write_outputs(rows: Sequence[Input], answers: Sequence[str], output: Path | None, wrap: int | None = None) -> None:
    """Answers on stdout, or as jsonl with the row's own columns.

    Args:
        rows, answers: one answer a row.
        output: jsonl file to write.
        wrap: columns to break answers at on stdout; by default 80 for a person to read, and a line each in a pipe.
    """
    if output is None:
        columns_wide = wrap or (_COLUMNS if is_terminal(sys.stdout) else None)
        for text in answers:
            answer(textwrap.fill(text, columns_wide, break_long_words=False) if columns_wide else text)
        return
    columns = [{"input": row} if isinstance(row, str) else dict(row) for row in rows]
    lines = [
        json.dumps({**row, "output": text}, ensure_ascii=False, default=str)
        for row, text in zip(columns, answers, strict=True)
    ]
    write_text(output, "\n".join(lines) + "\n")


def _lines(source: Path) -> list[Input]:
    if not source.is_file():
        raise UsageError(f"--input: no file {source}")
    try:
        return [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LoraFtError(f"{source} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
