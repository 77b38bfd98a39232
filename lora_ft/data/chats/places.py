"""Access to folders, zip files, text lines and CSV rows of exports. Every failure is a LoraFtError."""

from __future__ import annotations

import contextlib
import csv
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from zipfile import Path as ZipPath

from lora_ft.core.errors import LoraFtError, first_line

File = Path | ZipPath
_MAX_LINE = 1 << 22  # maximum bytes of a line
_MAX_ENTRIES = 200_000  # maximum files below an export's folder
_DEEPEST = 8  # maximum depth of folders below an export's folder
_IGNORED = re.compile(r"__MACOSX|\..*")
_NUMBERS = re.compile(r"(\d{1,18})")
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def root_of(file: Path) -> File:
    """Return the root of an export: the folder itself, or the content of a zip file below its only top folder.

    Raises:
        LoraFtError: The zip file is damaged.
    """
    if file.is_dir():
        return file
    try:
        root = ZipPath(zipfile.ZipFile(file))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LoraFtError(
            f"{file} is not a complete zip file ({first_line(error)})", "export or copy it again"
        ) from error
    entries = _listed(root)
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else root


def folder_name(file: File) -> str:
    """Return the name of a file's folder, or the name of the zip file at its top level."""
    name = Path(str(file)).parent.name
    return name[:-4] if name.lower().endswith(".zip") else name


def is_zip(file: Path) -> bool:
    """Return whether a file's content begins like a zip file."""
    if not file.is_file():
        return False
    with open(file, "rb") as content:
        return content.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or file.suffix.lower() == ".zip"


def files_below(folder: File, pattern: re.Pattern[str]) -> list[File]:
    """Return the files below a folder with a matching name. Numbers in names are sorted as numbers.

    Raises:
        LoraFtError: There are too many files.
    """
    matching: list[File] = []
    count = 0
    folders = [(folder, 0)]
    while folders:
        current, depth = folders.pop()
        for entry in _listed(current):
            count += 1
            if count > _MAX_ENTRIES:
                raise LoraFtError(
                    f"{folder} has more than {_MAX_ENTRIES:,} files", "give the folder of the chats alone"
                )
            if entry.is_dir():
                if depth < _DEEPEST:
                    folders.append((entry, depth + 1))
            elif pattern.fullmatch(entry.name):
                matching.append(entry)
    return sorted(matching, key=_place)


def _listed(folder: File) -> list[File]:
    return sorted(
        (entry for entry in folder.iterdir() if not _IGNORED.fullmatch(entry.name)), key=lambda entry: entry.name
    )


def _place(entry: File) -> tuple[list[tuple[int, int, str]], list[tuple[int, int, str]], str]:
    """Return a sort key that orders messages.html before messages2.html before messages10.html."""
    stem, _, suffix = entry.name.rpartition(".")
    return _numeric(str(entry.parent)), _numeric(stem), suffix


def _numeric(name: str) -> list[tuple[int, int, str]]:
    """Return the parts of a name, with runs of digits as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _NUMBERS.split(name) if part]


@contextlib.contextmanager
def opened(file: File) -> Iterator[IO[bytes]]:
    """Open a file of a folder or zip file.

    Raises:
        LoraFtError: The file cannot be read, or its entry in the zip file is encrypted or damaged.
    """
    try:
        content = file.open("rb")
    except (OSError, KeyError) as error:
        raise LoraFtError(f"{file} cannot be read ({first_line(error)})", "check its path and permissions") from error
    except (RuntimeError, ValueError, zipfile.BadZipFile) as error:  # RuntimeError: encrypted; ValueError: bad name
        raise LoraFtError(f"{file} cannot be unpacked ({first_line(error)})", "unpack the zip file first") from error
    with content:
        try:
            yield content
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise LoraFtError(f"{file} is damaged ({first_line(error)})", "export or copy it again") from error


def text_lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without line end) for each line. U+2028 and similar characters do not end a line.

    Raises:
        LoraFtError: The file is not UTF-8, or a line is longer than 4 MB.
    """
    number = 0
    with opened(file) as content:
        while line := content.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise LoraFtError(f"{file}:{number} is longer than {_MAX_LINE:,} bytes", "check the origin of the file")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                kind = _BOMS.get(line[:2], "not UTF-8") if number == 1 else "not UTF-8"
                raise LoraFtError(
                    f"{file}:{number} is {kind} (byte {error.start} of the line)", "save the file as UTF-8"
                ) from error


def followed(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, line, next line that is not blank or "") for each line of `text_lines`."""
    waiting: list[tuple[int, str]] = []
    for number, line in lines:
        if line.strip():
            yield from ((earlier, text, line) for earlier, text in waiting)
            waiting = []
        waiting.append((number, line))
    yield from ((number, line, "") for number, line in waiting)


def table(file: File, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells of `columns`) for each row of a CSV file.

    Raises:
        LoraFtError: A column is missing, or the cells of a row do not match the header.
    """
    reader = csv.reader((f"{line}\n" for _, line in text_lines(file)), strict=True)
    try:
        header = next(reader, [])
        if any(header.count(name) != 1 for name in columns):
            raise LoraFtError(f"{file}:1 lacks one of the columns {', '.join(columns)}", "export it again")
        places = [header.index(name) for name in columns]
        for row in reader:
            if len(row) != len(header) and row:
                raise LoraFtError(
                    f"{file}:{reader.line_num} has {len(row)} cells, but the header has {len(header)}",
                    "export it again",
                )
            if row:
                yield reader.line_num, [row[place] for place in places]
    except csv.Error as error:
        raise LoraFtError(f"{file}:{reader.line_num} is not CSV ({first_line(error)})", "export it again") from error
