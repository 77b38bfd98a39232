"""Open, decompress and decode a data file, with a limit on its memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.memory import allowed_memory

Row = dict[str, Any]
Located = tuple[str, Row]
"""A row with its location, "file:line"."""

MAX_CELL = 10_000_000
"""Maximum length of a cell, in characters: a hundred times the longest prompt that T5 is used with."""
_ROW_COST = 8  # bytes of Python rows per byte of text; short cells cost the most
_CHUNK = 1 << 20
_LFS = b"version https://git-lfs"
_SHEETS = ("xl/workbook.xml", "xl/workbook.bin", "content.xml")  # of Excel, and of OpenDocument
_OLD_EXCEL = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_SAMPLE = 4  # characters; a header or the first key of JSON is at least that long, and nearly always ASCII

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    struct.error,
)

# Byte order marks, longest first, because the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


@dataclass(frozen=True)
class Content:
    """The decompressed content of a data file.

    Attributes:
        file: Path of the file.
        name: File name without the ending of a compression; for a zip, the name of the file inside.
        data: Decompressed bytes.
    """

    file: Path
    name: str
    data: bytes

    @property
    def ending(self) -> str:
        """Ending of `name` in lowercase, such as ".csv"."""
        return PurePath(self.name).suffix.lower()

    def text(self, encoding: str | None = None) -> str:
        """Return the decoded text. A byte order mark overrides `encoding`.

        Without a mark and without `encoding`, text is UTF-8, or UTF-16 if its first bytes look so.

        Raises:
            LoraFtError: The bytes are not valid in that encoding.
        """
        for mark, name in _MARKS.items():
            if self.data.startswith(mark):
                return self._decoded(self.data[len(mark) :], name)
        return self._decoded(self.data, encoding or _unmarked(self.data))

    def _decoded(self, data: bytes, encoding: str) -> str:
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except UnicodeError as error:  # not all codecs raise UnicodeDecodeError
            start = error.start if isinstance(error, UnicodeDecodeError) else 0
            line = data.count(b"\n", 0, start) + 1
            name = "UTF-8" if encoding == "utf-8" else encoding
            remedy = (
                "save the file as UTF-8, or set data.encoding, e.g. to cp1252 for Western Europe's old Windows files"
                if encoding == "utf-8"
                else "correct data.encoding"
            )
            raise LoraFtError(f"{self.file}:{line} is not {name} (byte {start})", remedy) from error


def content_of(file: Path) -> Content:
    """Read a file, and decompress gzip, bzip2, xz, zstd and zip whatever the file's name.

    Raises:
        UsageError: The file is not a regular file, is a zip of several files or a spreadsheet, is encrypted, or exceeds
            the memory.
        LoraFtError: The file cannot be read, is a Git LFS pointer, or has damaged compressed content.
    """
    name = file.name
    if file.suffix.lower() in COMPRESSED:
        name = file.stem
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a FIFO would wait forever for a writer
            raise UsageError(f"{file} is {kind_of_file(file)}, not a file", "write its content to a file first")
        with open(file, "rb") as raw:
            beginning = raw.read(8)
            raw.seek(0)
            if beginning.startswith(b"PK\x03\x04"):
                inside, data = _unzipped(file, raw)
                return Content(file, inside, data)
            if beginning == _OLD_EXCEL:
                raise _spreadsheet(file)
            if raw.read(len(_LFS)) == _LFS:
                raise LoraFtError(f"{file} is a pointer of Git LFS, not the file itself", "run `git lfs pull`")
            raw.seek(0)
            unpack = next((unpack for magic, unpack in _MAGIC.items() if beginning.startswith(magic)), None)
            if unpack is None and name != file.name:
                raise LoraFtError(
                    f"{file} is not compressed by {file.suffix[1:]}", "copy it again, or correct its ending"
                )
            return Content(file, name, _bounded(file, unpack(raw) if unpack else raw))
    except _DAMAGED as error:
        raise LoraFtError(f"{file} cannot be read ({first_line(error)})", "copy it again") from error


def kind_of_file(file: Path) -> str:
    """Return the kind of a path that is not a regular file."""
    mode = file.stat().st_mode
    kinds: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR,
        "a FIFO": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


def _unmarked(data: bytes) -> str:
    """Return the encoding of text without a mark: UTF-16 if every other byte at the start is zero, otherwise UTF-8."""
    even, odd = data[: 2 * _SAMPLE : 2], data[1 : 2 * _SAMPLE : 2]
    if len(odd) > 2 and even.count(0) == 0 and odd.count(0) == len(odd):
        return "utf-16-le"
    return "utf-16-be" if len(odd) > 2 and odd.count(0) == 0 and even.count(0) == len(even) else "utf-8"


def _unzipped(file: Path, raw: IO[bytes]) -> tuple[str, bytes]:
    """Return the name and content of the only file in a zip."""
    with zipfile.ZipFile(raw) as archive:
        entries = [
            entry
            for entry in archive.infolist()  # is_dir() of Python 3.11 fails if a damaged name is empty
            if not entry.filename.endswith("/")
            and not any(part.startswith((".", "__MACOSX")) for part in entry.filename.split("/"))
        ]
        if any(entry.filename in _SHEETS for entry in entries):
            raise _spreadsheet(file)
        if len(entries) != 1:
            raise UsageError(
                f"{file} is a zip of {len(entries)} files, not one", "unpack it, and name the files with rows"
            )
        if entries[0].flag_bits & 1:
            raise UsageError(f"{file} is encrypted", "unpack it first")
        with archive.open(entries[0]) as content:
            return entries[0].filename, _bounded(file, content)


def _spreadsheet(file: Path) -> UsageError:
    return UsageError(f"{file} is a spreadsheet, not text", "save the sheet as CSV in UTF-8")


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError("zstd needs pyarrow", "pip install 'lora-ft[train]', or decompress the file") from error
    stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return stream


_MAGIC: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings that follow the ending of the format, as in `rows.csv.gz`."""


def _bounded(file: Path, stream: Any) -> bytes:
    """Return the bytes of a stream; raise UsageError if its rows would not fit into memory."""
    limit = allowed_memory() // _ROW_COST
    out = io.BytesIO()
    while chunk := stream.read(_CHUNK):
        out.write(chunk)
        if out.tell() > limit:
            raise UsageError(
                f"{file} has more than {limit / 2**30:.1f} GiB, and its rows take {_ROW_COST} times as much memory",
                "use fewer of its rows, or a machine with more memory",
            )
    return out.getvalue()
