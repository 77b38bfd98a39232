"""Rows out of local files: which files are meant, and which format each has. Faults name the file and the line."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from lora_ft.core.errors import DataError, UsageError, first_line, raised_as
from lora_ft.data.formats.content import COMPRESSED, Content, Located, Row, content_of, kind_of_file
from lora_ft.data.formats.delimited import read_delimited
from lora_ft.data.formats.json_rows import read_json_rows
from lora_ft.data.formats.table import read_parquet

__all__ = ["READERS", "Layout", "Located", "Row", "find_files", "is_readable", "read_rows"]

READERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that hold rows; one of `COMPRESSED` may follow. JSON is also read from .txt."""
_TEXT = ".txt"


@dataclass(frozen=True)
class Layout:
    """How files are written, where they do not say it themselves.

    Attributes:
        encoding: of text, by Python's name.
        delimiter: between the cells of CSV.
        field: column or path of the rows in a JSON document.
    """

    encoding: str | None = None
    delimiter: str | None = None
    field: str | None = None


@raised_as(DataError)
def read_rows(root: Path, names: str | list[str], key: str, layout: Layout | None = None) -> list[Located]:
    """Return (where, row) of every row in the files that `names` stand for, in order; where is "file:line".

    Args:
        root: folder that relative names start from.
        names: file, glob or list of them.
        key: key of the task that holds them, for errors.
        layout: how they are written; by default as they say themselves.

    Raises:
        UsageError: a file is missing, of a format with no reader, or cannot be read in this layout.
        LoraFtError: a file is damaged, or of another encoding.
    """
    rows: list[Located] = []
    for file in find_files(root, names, key):
        if not is_readable(file) and _ending(file) != _TEXT:
            raise _unreadable(file, key)
        content = content_of(file)
        if content.ending not in (*READERS, _TEXT):
            raise _unreadable(file, key)
        rows += _read(content, key, layout or Layout())
    return rows


def is_readable(file: Path) -> bool:
    """Return whether a file holds rows, by its name."""
    return _ending(file) in READERS or file.suffix.lower() == ".zip"


def find_files(root: Path, names: str | list[str], key: str, *, folders: bool = False) -> Iterator[Path]:
    """Yield the files that `names` stand for, in order; with `folders`, a folder may be named too.

    Raises:
        UsageError: a name stands for none, or for what is no file.
    """
    for name in [names] if isinstance(names, str) else names:
        try:
            expanded = Path(name).expanduser()
            path = root / expanded
            found = [path] if path.exists() else _matching(root, str(expanded), folders=folders)
        except (OSError, ValueError, RuntimeError) as error:  # a user that is not there, a zero, a name too long
            raise UsageError(f"{key}: {name!r} is no usable name ({first_line(error)})", "correct the name") from error
        if not found:
            raise UsageError(
                f"{key}: no file {path}", "correct the name, or set data.root to the folder it starts from"
            )
        if not (path.is_file() or found != [path] or (folders and path.is_dir())):
            raise UsageError(f"{key}: {path} is {kind_of_file(path)}, not a file", "name files with rows")
        yield from found


def _matching(root: Path, pattern: str, *, folders: bool) -> list[Path]:
    """Return the files of a glob; marks of globs in the root itself are plain characters."""
    full = pattern if Path(pattern).is_absolute() else f"{glob.escape(str(root))}/{pattern}"
    paths = sorted(Path(name) for name in glob.glob(full, recursive=True))  # noqa: PTH207  (absolute ones too)
    return [path for path in paths if path.is_file() or (folders and path.is_dir())]


def _read(content: Content, key: str, layout: Layout) -> list[Located]:
    ending = content.ending
    is_json = ending in (".jsonl", ".ndjson", ".json", _TEXT)
    if layout.field is not None and not is_json:
        raise UsageError(f"{key}: {content.file} is not JSON, and data.field is for JSON", "remove data.field")
    if ending == ".parquet":
        return read_parquet(content)
    if not is_json:
        return read_delimited(content, encoding=layout.encoding, delimiter=layout.delimiter)
    if ending == _TEXT and not content.text(layout.encoding).lstrip().startswith(("{", "[")):
        raise _unreadable(content.file, key)
    return read_json_rows(content, encoding=layout.encoding, field=layout.field)


def _ending(file: Path) -> str:
    """Return the ending of a file's name below that of a compression, in small letters."""
    name = file.name if file.suffix.lower() not in COMPRESSED else file.stem
    return PurePath(name).suffix.lower()


def _unreadable(file: Path, key: str) -> UsageError:
    return UsageError(
        f"{key}: {file} has no reader",
        f"formats: {', '.join(READERS)}, each also compressed ({', '.join(COMPRESSED)}); JSON also in {_TEXT}",
    )
