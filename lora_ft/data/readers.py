"""Read rows from local files: expand names and globs, and choose the format. Errors name the file and the line."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from lora_ft.core.errors import DataError, LoraFtError, UsageError, first_line, raised_as
from lora_ft.core.user_paths import check_name
from lora_ft.data.formats.content import COMPRESSED, Content, Located, Row, content_of, kind_of_file
from lora_ft.data.formats.delimited import read_delimited
from lora_ft.data.formats.json_rows import read_json_rows
from lora_ft.data.formats.table import read_parquet

__all__ = ["READERS", "Layout", "Located", "Row", "find_files", "is_readable", "read_rows", "without_keys"]

READERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files with rows; one of `COMPRESSED` may follow. JSON is also read from .txt."""
_TEXT = ".txt"
_SHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_SET_KEY = re.compile(r"(, or )?set data\..*")


@dataclass(frozen=True)
class Layout:
    """Settings for reading files, instead of detecting them.

    Attributes:
        encoding: Encoding of text, by Python's name.
        delimiter: Delimiter between the cells of CSV.
        field: Column or path of the rows in a JSON document.
    """

    encoding: str | None = None
    delimiter: str | None = None
    field: str | None = None


@raised_as(DataError)
def read_rows(root: Path, names: str | list[str], key: str, layout: Layout | None = None) -> list[Located]:
    """Return (location, row) for every row in the files that match `names`, in order; a location is "file:line".

    Args:
        root: Folder that relative names start from.
        names: File, glob, or list of files and globs.
        key: Key of the task that holds the names, for errors.
        layout: Encoding, delimiter and field. Default: detected.

    Raises:
        UsageError: A file is missing, has an unsupported format, or cannot be read with this layout.
        LoraFtError: A file is damaged, or has another encoding.
    """
    rows: list[Located] = []
    for file in find_files(root, names, key):
        if _ending(file) in _SHEETS:
            raise UsageError(f"{key}: {file} is a spreadsheet, not text", "save the sheet as CSV in UTF-8")
        if not is_readable(file) and _ending(file) != _TEXT:
            raise _unreadable(file, key)
        content = content_of(file)
        if content.ending not in (*READERS, _TEXT):
            raise _unreadable(file, key)
        try:
            rows += _read(content, key, layout or Layout())
        except LoraFtError as error:
            if key.startswith("--"):
                raise without_keys(error) from error
            raise
    return rows


def without_keys(error: LoraFtError) -> LoraFtError:
    """Return an error of a reader whose remedy names no key of a task, for files that an option names."""
    remedy = _SET_KEY.sub("", error.remedy)
    return type(error)(error.message, remedy or ("write its rows as JSON Lines" if error.remedy else ""))


def is_readable(file: Path) -> bool:
    """Return whether the name of a file has a supported ending."""
    return _ending(file) in READERS or file.suffix.lower() == ".zip"


def find_files(root: Path, names: str | list[str], key: str, *, folders: bool = False) -> Iterator[Path]:
    """Yield the files that match `names`, in order; with `folders`, folders are allowed too.

    Raises:
        UsageError: A name matches nothing, or something that is not a file.
    """
    for name in [names] if isinstance(names, str) else names:
        check_name(name)
        try:
            expanded = Path(name).expanduser()
            path = root / expanded
            paths = [path] if path.exists() else _matching(root, str(expanded), folders=folders)
        except (OSError, ValueError, RuntimeError) as error:  # an unknown ~user, a null character, a name too long
            raise UsageError(f"{key}: {name!r} is not a valid path ({first_line(error)})", "correct it") from error
        if not paths:
            folder = "" if key.startswith("--") else ", or set data.root to the folder it starts from"
            raise UsageError(f"{key}: no file {path}", f"correct the name{folder}")
        if not (path.is_file() or paths != [path] or (folders and path.is_dir())):
            raise UsageError(f"{key}: {path} is {kind_of_file(path)}, not a file", "name files with rows")
        yield from paths


def _matching(root: Path, pattern: str, *, folders: bool) -> list[Path]:
    """Return the files that match a glob. Glob characters in the root itself are literal."""
    full = pattern if Path(pattern).is_absolute() else f"{glob.escape(str(root))}/{pattern}"
    paths = sorted(Path(name) for name in glob.glob(full, recursive=True))  # noqa: PTH207  (absolute ones too)
    return [path for path in paths if path.is_file() or (folders and path.is_dir())]


def _read(content: Content, key: str, layout: Layout) -> list[Located]:
    ending = content.ending
    is_json = ending in (".jsonl", ".ndjson", ".json", _TEXT)
    if layout.field is not None and not is_json:
        raise UsageError(f"{key}: {content.file} is not JSON, so data.field has no effect", "remove data.field")
    if ending == ".parquet":
        return read_parquet(content)
    if not is_json:
        return read_delimited(content, encoding=layout.encoding, delimiter=layout.delimiter)
    if ending == _TEXT and not content.text(layout.encoding).lstrip().startswith(("{", "[")):
        raise _unreadable(content.file, key)
    return read_json_rows(content, encoding=layout.encoding, field=layout.field)


def _ending(file: Path) -> str:
    """Return the ending of a file name in lowercase, without the ending of a compression."""
    name = file.name if file.suffix.lower() not in COMPRESSED else file.stem
    return PurePath(name).suffix.lower()


def _unreadable(file: Path, key: str) -> UsageError:
    return UsageError(
        f"{key}: {file} has an unsupported format",
        f"use {', '.join(READERS)}, each optionally compressed ({', '.join(COMPRESSED)}), or JSON in {_TEXT}",
    )
