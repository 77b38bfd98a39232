"""Read rows of CSV and similar formats, and detect the delimiter and the escaping of quotes.

A dialect fits if every record has as many cells as the header. The dialects are `,`, `;`, tab and `|`, with quotes
doubled or escaped by `\\`. Wrong dialects hardly ever fit. If two fit and give different rows, the file is refused,
because no rule would be right for every program.

Tabs also occur with quotes as plain characters (Google Sheets, MRPC). Programs that quote cells quote every cell with a
quote inside. So a quote in an unquoted cell means plain quotes.

Excel's line `sep=;` and the key `data.delimiter` fix the delimiter. If no dialect fits, the file is read with the
format's own delimiter, and its first error is reported with the line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Literal

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats.content import MAX_CELL, Content, Located

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Delimiter of each ending."""
_TRIED = ",;\t|"
_SEP = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
_RULE = re.compile(r"[ :]*-+[ :]*|")  # of sqlcmd, and of Markdown
_QUOTED = re.compile(r'(?:(?<=[\t\r\n])|\A)"(?:[^"\\]++|""|\\"|\\)*"(?=[\t\r\n]|\Z)')
_BACKSLASHED = re.compile(r"\\(.?)", re.DOTALL)

Record = tuple[int, list[str]]
"""First line of a record, and its cells."""

csv.field_size_limit(MAX_CELL)


def read_delimited(content: Content, *, encoding: str | None = None, delimiter: str | None = None) -> list[Located]:
    """Return the rows of a delimited file, located by "file:line".

    Blanks around column names are removed, and columns without a name are left out.

    Args:
        content: Content of the file.
        encoding, delimiter: Settings of the task. Default: detected.

    Raises:
        LoraFtError: The file is damaged, a record repeats the header, or its number of cells differs from the header.
        UsageError: Two columns have the same name.
    """
    return list(_rows(content, _reader(content, encoding, delimiter)))


def _reader(content: Content, encoding: str | None, delimiter: str | None) -> _Reader:
    """Return the reader of the dialect that fits, or of the default one if none does.

    Raises:
        UsageError: Several dialects fit and give different rows.
    """
    text, first = content.text(encoding), 1
    if mark := _SEP.match(text):
        text, first, delimiter = text[mark.end() :], 2, delimiter or mark[1]
    default = DELIMITERS.get(content.ending, ",")
    order = [delimiter] if delimiter else [default, *(character for character in _TRIED if character != default)]
    readers = [_Reader(text, character, first) for character in order]
    if any(match[1] == '"' for match in _BACKSLASHED.finditer(text)):
        readers += [_Reader(_BACKSLASHED.sub(_protected, text), character, first, escape="\\") for character in order]
    if "\t" in order and '"' in text:
        plain = _Reader(text, "\t", first, quotes=False)
        is_plain = plain.fits() and not _is_escaped(text, "\t") and '"' in _QUOTED.sub("", text)
        readers = [*(reader for reader in readers if not is_plain or reader.delimiter != "\t"), plain]
    fitting = [reader for reader in readers if reader.fits()]
    fitting = fitting or [reader for reader in readers if reader.delimiter == order[0] and reader.fits(columns=1)]
    best = next(iter(fitting), readers[0])
    if any(reader.delimiter != best.delimiter and reader.differs(best) for reader in fitting):
        raise UsageError(f"{content.file} fits two delimiters, with different rows", "set data.delimiter")
    if any(reader.differs(best) for reader in fitting):
        raise UsageError(
            f"{content.file} fits two ways of quoting, with different rows", "write its rows as JSON Lines"
        )
    return best


class _Reader:
    """A reader of a text's records in one dialect.

    Attributes:
        delimiter: Delimiter between cells.
    """

    def __init__(
        self, text: str, delimiter: str, first: int, *, escape: str | None = None, quotes: bool = True
    ) -> None:
        self.delimiter = delimiter
        self._text, self._first, self._escape = text, first, escape
        self._quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        self._is_sound = not quotes or not (_is_escaped if escape is None else _is_doubled)(text, delimiter)
        self._blanks = False
        try:
            header = next(self.records(), (0, []))[1]
        except csv.Error:
            return
        # A header with a blank after each delimiter means that records have them too, also before quotes.
        self._blanks = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
        # So does a quote after a blank, since programs would quote a cell that has a quote inside.
        edge = re.escape(delimiter)
        self._blanks = self._blanks or (quotes and re.search(rf'{edge} +"(?![{edge}"\r\n])', text) is not None)

    def records(self) -> Iterator[Record]:
        """Yield the records that have cells; raise csv.Error with the line and the reason."""
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
            whole = "end of data" in str(error) or "field larger" in str(error)  # report the line of the opening quote
            raise csv.Error(line if whole else self._first + lines.line_num - 1, str(error)) from error

    def fits(self, *, columns: int = 0) -> bool:
        """Return whether all records have the same number of cells: `columns`, or by default any number but one."""
        if not self._is_sound:
            return False
        try:
            cells = (len(cells) for _, cells in self.records())
            width = next(cells, 0)
            return (
                width != 0
                and (width == columns or (not columns and width > 1))
                and all(count == width for count in cells)
            )
        except csv.Error:
            return False

    def differs(self, other: _Reader) -> bool:
        """Return whether another reader that fits yields other records; quotes around cells do not count."""
        if self._quoting != other._quoting:
            return sum(1 for _ in self.records()) != sum(1 for _ in other.records())
        return any(ours != theirs for ours, theirs in zip_longest(self.records(), other.records()))


def _is_escaped(text: str, delimiter: str) -> bool:
    """Return whether backslashes escape quotes, also in unquoted cells, which every dialect could parse.

    If quotes are doubled, a backslash precedes a quote only at the end of a cell or before another quote. If quotes are
    escaped, backslashes are escaped too, and none precedes another character.
    """
    if '\\"' not in text or any(match[1] not in ("\\", '"') for match in _BACKSLASHED.finditer(text)):
        return False
    return re.search(rf'\\"(?!["\r\n{re.escape(delimiter)}]|\Z)', text) is not None


def _is_doubled(text: str, delimiter: str) -> bool:
    """Return whether quotes are doubled, also next to escaped ones. Other doubled quotes are an empty cell."""
    edges = rf"\r\n{re.escape(delimiter)}"
    return re.search(rf'(?<=[^ {edges}])""|""(?=[^{edges}])', _BACKSLASHED.sub("__", text)) is not None


def _rows(content: Content, reader: _Reader) -> Iterator[Located]:
    try:
        records = reader.records()
        header = next(records, None)
        if header is None:
            return
        names = [name.strip() for name in header[1]]
        repeated = [name for i, name in enumerate(names) if name and name in names[:i]]
        if repeated:
            raise UsageError(
                f"{content.file}:{header[0]} has two columns named '{repeated[0]}'", "rename or remove one of them"
            )
        for line, cells in records:
            if len(cells) != len(names):
                raise _ragged(f"{content.file}:{line}", len(cells), len(names))
            if len(cells) > 1 and [cells[0].removeprefix("\ufeff"), *cells[1:]] == header[1]:
                raise LoraFtError(
                    f"{content.file}:{line} repeats the header", "remove it, or name the files that were joined"
                )
            if line == header[0] + 1 and "---" in "".join(cells) and all(map(_RULE.fullmatch, cells)):
                raise LoraFtError(f"{content.file}:{line} is a rule under the header", "remove it")
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
        return "check for a missing quote before this line"
    return "check whether the file is cut off" if "end of data" in reason else "double each quote inside quotes"


def _protected(match: re.Match[str]) -> str:
    """Double a backslash that escapes neither a quote nor a backslash, so that it stays literal."""
    return match[0] if match[1] and match[1] in '"\\' else f"\\\\{match[1]}"
