"""Rows out of local files, one reader a format, found by the file's ending. Faults name the file and the line."""

from __future__ import annotations

import csv
import glob
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.errors import LoraFtError, UsageError, first_line

Row = dict[str, Any]
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # its own 131,072 characters are fewer than some documents have


def read_rows(root: Path, names: str | list[str], key: str) -> list[tuple[str, Row]]:
    """(where, row) of every row in the files that `names` stand for, in order; where is "file:line".

    Args:
        root: folder that relative names start from.
        names: file, glob or list of them.
        key: of the task that holds them, for errors.

    Raises:
        UsageError: a file is missing, or of a format with no reader.
        LoraFtError: a file is damaged or not UTF-8.
    """
    rows: list[tuple[str, Row]] = []
    for file in find_files(root, names, key):
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise UsageError(f"{key}: {file} has no reader", f"formats: {', '.join(READERS)}")
        rows += reader(file)
    return rows


def find_files(root: Path, names: str | list[str], key: str, *, folders: bool = False) -> Iterator[Path]:
    """The files that `names` stand for, in order; with `folders`, a folder may be named too.

    Raises:
        UsageError: a name stands for none.
    """
    for name in [names] if isinstance(names, str) else names:
        path = root / Path(name).expanduser()
        named = path.is_file() or (folders and path.is_dir())
        found = [path] if named else _matching(root, str(Path(name).expanduser()))
        if not found:
            raise UsageError(
                f"{key}: no file {path}", "correct the name, or set data.root to the folder it starts from"
            )
        yield from found


def _matching(root: Path, pattern: str) -> list[Path]:
    """Files of a glob; marks of globs in the root itself are plain characters."""
    full = pattern if Path(pattern).is_absolute() else f"{glob.escape(str(root))}/{pattern}"
    return sorted(Path(name) for name in glob.glob(full, recursive=True))  # noqa: PTH207  (absolute ones too)


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LoraFtError(f"{file}:{line} is not UTF-8 (byte {error.start})", "save the file as UTF-8") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise LoraFtError(f"{where} is no object but a {type(value).__name__}", 'write each row as {"column": ...}')
    return value


def _parsed(text: str, where: str) -> Any:
    value = json.loads(text)
    if "\\ud" in text.lower():  # JSON can spell half a character, which no tokenizer reads
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise LoraFtError(
                f"{where} holds half a character (a lone surrogate)", "write the text as UTF-8"
            ) from error
    return value


def _jsonl(file: Path) -> list[tuple[str, Row]]:
    rows = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            rows.append((where, _object(_parsed(line, where), where)))
        except json.JSONDecodeError as error:
            raise LoraFtError(f"{where} is not JSON ({error.msg})", "is the file cut off or not jsonl?") from error
    return rows


def _json(file: Path) -> list[tuple[str, Row]]:
    try:
        content = _parsed(_text(file), str(file))
    except json.JSONDecodeError as error:
        raise LoraFtError(f"{file}:{error.lineno} is not JSON ({error.msg})", "is the file cut off?") from error
    if not isinstance(content, list):
        raise LoraFtError(f"{file} is no list of objects", "write [{...}, {...}], or use jsonl")
    return [(f"{file}[{i}]", _object(row, f"{file}[{i}]")) for i, row in enumerate(content)]


def _delimited(delimiter: str) -> Callable[[Path], list[tuple[str, Row]]]:
    def read(file: Path) -> list[tuple[str, Row]]:
        lines = csv.DictReader(io.StringIO(_text(file), newline=""), delimiter=delimiter, strict=True)
        rows: list[tuple[str, Row]] = []
        try:
            for row in lines:
                where = f"{file}:{lines.line_num}"
                if None in row:
                    raise LoraFtError(f"{where} has more cells than the header", "quote cells that hold the delimiter")
                rows.append((where, row))
        except csv.Error as error:
            raise LoraFtError(f"{file}:{lines.reader.line_num} is damaged ({error})", "is the file cut off?") from error
        return rows

    return read


def _parquet(file: Path) -> list[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise LoraFtError(f"{file} is not a whole parquet file ({first_line(error)})", "copy it again") from error
    return [(f"{file}[{i}]", row) for i, row in enumerate(rows)]


READERS: dict[str, Callable[[Path], list[tuple[str, Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet,
}
