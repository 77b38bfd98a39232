"""Rows of CSV and its relatives: the delimiter and the way quotes are escaped are found by what reads the file whole.

A dialect is right if every record has as many cells as the header, and wrong ones hardly ever are, so the first that
fits is taken: the format's own delimiter, then `;`, tab, `|` and the comma, then the same with quotes escaped by `\\`,
then tabs between cells in which quotes are plain characters.
Excel's line `sep=;` and the key `data.delimiter` decide without a trial. Nothing is guessed where no dialect fits: the
file is read in its own one, and its first fault is told with the line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Literal

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats.content import MAX_CELL, Content, Located

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiter of each ending."""
_TRIED = ",;\t|"
_SEP = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
_BACKSLASHED = re.compile(r"\\(.?)", re.DOTALL)

Record = tuple[int, list[str]]
"""Line that a record begins in, and its cells."""

csv.field_size_limit(MAX_CELL)


def read_delimited(content: Content, *, encoding: str | None = None, delimiter: str | None = None) -> list[Located]:
    """Return the rows of a delimited file; where is "file:line".

    Blanks around the names of a header are left out, and so are columns without a name.

    Args:
        content: of the file.
        encoding, delimiter: as the task names them; by default they are found.

    Raises:
        LoraFtError: the file is damaged, or a record has other cells than the header.
        UsageError: two columns have the same name.
    """
    text, first = content.text(encoding), 1
    if mark := _SEP.match(text):
        text, first, delimiter = text[mark.end() :], 2, delimiter or mark[1]
    own = DELIMITERS.get(content.ending, ",")
    order = [delimiter] if delimiter else [own, *(one for one in _TRIED if one != own)]
    readers = [_Reader(text, one, first) for one in order]
    if '\\"' in text:
        readers += [_Reader(_BACKSLASHED.sub(_protected, text), one, first, escape="\\") for one in order]
    if "\t" in order and '"' in text:
        readers.append(_Reader(text, "\t", first, quotes=False))
    fitting = (reader for reader in readers if reader.fits())
    alone = (reader for reader in readers if reader.delimiter == order[0] and reader.fits(columns=1))
    return list(_rows(content, next(fitting, None) or next(alone, readers[0])))


class _Reader:
    """The records of a text in one dialect.

    Attributes:
        delimiter: of its cells.
    """

    def __init__(
        self, text: str, delimiter: str, first: int, *, escape: str | None = None, quotes: bool = True
    ) -> None:
        self.delimiter = delimiter
        self._text, self._first, self._escape = text, first, escape
        self._quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        self._is_sound = escape is not None or not quotes or not _is_escaped(text, delimiter)
        self._blanks = False
        try:
            header = next(self.records(), (0, []))[1]
        except csv.Error:
            return
        # Blanks after each delimiter of the header are a habit of whoever wrote it, and stand before quotes, too.
        self._blanks = len(header) > 1 and all(name.startswith(" ") for name in header[1:])

    def records(self) -> Iterator[Record]:
        """Yield the records that have cells; raise csv.Error with the line and what is wrong there."""
        lines = csv.reader(
            io.StringIO(self._text, newline=""),
            delimiter=self.delimiter,
            escapechar=self._escape,
            quoting=self._quoting,
            skipinitialspace=self._blanks,
            strict=True,
        )
        line = self._first
        try:
            for cells in lines:
                if cells:
                    yield line, cells
                line = self._first + lines.line_num
        except csv.Error as error:
            whole = "end of data" in str(error) or "field larger" in str(error)  # where the quote was opened says more
            raise csv.Error(line if whole else self._first + lines.line_num - 1, str(error)) from error

    def fits(self, *, columns: int = 0) -> bool:
        """Return whether all records have the same number of cells: that of `columns`, by default two or more."""
        if not self._is_sound:
            return False
        try:
            counts = {len(cells) for _, cells in self.records()}
        except csv.Error:
            return False
        return len(counts) == 1 and (counts == {columns} if columns else counts != {1})


def _is_escaped(text: str, delimiter: str) -> bool:
    """Return whether backslashes escape quotes, also outside quotes, where any dialect would read them.

    Where quotes are doubled, a backslash comes before a quote only at the end of a cell or before another quote. Where
    they are escaped, backslashes are, too, and none stands before other characters.
    """
    if '\\"' not in text or any(match[1] not in ("\\", '"') for match in _BACKSLASHED.finditer(text)):
        return False
    return re.search(rf'\\"(?!["\r\n{re.escape(delimiter)}]|\Z)', text) is not None


def _rows(content: Content, reader: _Reader) -> Iterator[Located]:
    try:
        records = reader.records()
        header = next(records, None)
        if header is None:
            return
        names = [name.strip() for name in header[1]]
        twice = [name for i, name in enumerate(names) if name and name in names[:i]]
        if twice:
            raise UsageError(
                f"{content.file}:{header[0]} has two columns of the name '{twice[0]}'", "rename or remove one of them"
            )
        for line, cells in records:
            if len(cells) != len(names):
                raise _ragged(f"{content.file}:{line}", len(cells), len(names))
            yield f"{content.file}:{line}", {name: cell for name, cell in zip(names, cells, strict=True) if name}
    except csv.Error as error:
        line, reason = error.args
        raise LoraFtError(f"{content.file}:{line} is damaged ({reason})", _remedy(reason)) from error


def _ragged(where: str, cells: int, names: int) -> LoraFtError:
    if cells > names:
        return LoraFtError(
            f"{where} has more cells than the header ({cells}, not {names})",
            "quote cells that hold the delimiter, or set data.delimiter",
        )
    return LoraFtError(
        f"{where} has fewer cells than the header ({cells}, not {names})",
        "quote cells that hold line breaks, or fill up the row",
    )


def _remedy(reason: str) -> str:
    if "field larger" in reason:
        return "is a quote missing before this line?"
    return "is the file cut off?" if "end of data" in reason else "write a quote inside quotes twice"


def _protected(match: re.Match[str]) -> str:
    """Double a backslash that escapes neither a quote nor a backslash, so that it stays what it is."""
    return match[0] if match[1] and match[1] in '"\\' else f"\\\\{match[1]}"
