"""JSON files of any size, read object by object within bounds, with faults in our own words.

ijson parses; `_Source` stands between it and the file. Every chunk is checked by `JsonLimits` before ijson sees it, a
`repair` may rewrite it first, and one object may not take more than `MAX_OBJECT` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import IO, Any, TypeVar

import ijson
from ijson.common import ObjectBuilder

from lora_ft.core.errors import LoraFtError
from lora_ft.core.json_limits import JsonLimits
from lora_ft.data.chats.places import File as File
from lora_ft.data.chats.places import opened

Repair = Callable[[bytes], bytes]
T = TypeVar("T")

MAX_OBJECT = 1 << 26
"""Longest object that is built in memory, in bytes of the file."""
_CHUNK = 1 << 16
_BOM, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class _Source:
    """The bytes of a file as ijson reads them: without a byte order mark, repaired, within bounds."""

    def __init__(self, content: IO[bytes], file: File, repair: Callable[[], Repair] | None) -> None:
        self._content, self._file = content, file
        self._repair = repair() if repair is not None else None
        self._limits = JsonLimits(file)
        self._offset, self._start = 0, -1

    def read(self, size: int = _CHUNK) -> bytes:
        """Return the next chunk, b"" at the end; `size` is a hint."""
        if size == 0:
            return b""
        while True:
            chunk = self._next()
            ready = self._repair(chunk) if self._repair is not None else chunk
            if ready or not chunk:
                self._limits.check(ready)
                return ready

    def _next(self) -> bytes:
        if 0 <= self._start < self._offset - MAX_OBJECT:
            raise LoraFtError(
                f"{self._file} has an object of more than {MAX_OBJECT:,} bytes (from byte {self._start:,})",
                "check where the file comes from; no chat program writes such messages",
            )
        chunk = self._content.read(_CHUNK)
        if self._offset == 0 and chunk.startswith(_UTF16):
            raise LoraFtError(f"{self._file} is UTF-16, not UTF-8", "save the file as UTF-8")
        self._offset += len(chunk)
        return chunk.removeprefix(_BOM) if self._offset == len(chunk) else chunk

    def begin_object(self) -> None:
        """Note that an object begins about here, which `read` then bounds."""
        self._start = self._offset

    def end_object(self) -> None:
        """Note that nothing is built any more."""
        self._start = -1


def objects(file: File, prefix: str, repair: Callable[[], Repair] | None = None) -> Iterator[Any]:
    """Yield the values at a prefix of ijson's, e.g. "messages.item", one after the other.

    Args:
        file: with UTF-8 text.
        prefix: path of keys; "item" stands for every element of a list.
        repair: makes a function that rewrites the chunks of a file in order; it returns as much as it can at once and
            the rest when it is called with b"", at the end.

    Raises:
        LoraFtError: the file is cut off, no JSON, not UTF-8 or out of bounds; the error says after how many values.
    """

    def parse(source: _Source) -> Iterator[Any]:
        bounded = prefix.endswith("item")
        if bounded:
            source.begin_object()
        for value in ijson.items(source, prefix, use_float=True):
            yield value
            if bounded:
                source.begin_object()

    return _read(file, parse, repair)


BEGIN = object()
"""What `walk` yields in place of a value where an object begins."""


def walk(
    file: File,
    prefixes: Collection[str],
    repair: Callable[[], Repair] | None = None,
    *,
    begins: Collection[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Yield (prefix, value) of the values at several prefixes, in the order of the file.

    Args:
        file: as of `objects`.
        prefixes: of the values.
        repair: as of `objects`.
        begins: prefixes of objects of which only the beginning is yielded, as (prefix, `BEGIN`).

    Raises:
        LoraFtError: as of `objects`.
    """

    def parse(source: _Source) -> Iterator[tuple[str, Any]]:
        builder, inside = None, ""
        for prefix, event, value in ijson.parse(source, use_float=True):
            if builder is not None:
                builder.event(event, value)
                if prefix == inside and event in ("end_map", "end_array"):
                    source.end_object()
                    yield prefix, builder.value
                    builder = None
            elif prefix in prefixes:
                if event in ("start_map", "start_array"):
                    builder, inside = ObjectBuilder(), prefix
                    source.begin_object()
                    builder.event(event, value)
                elif event not in ("end_map", "end_array", "map_key"):
                    yield prefix, value
            elif event == "start_map" and prefix in begins:
                yield prefix, BEGIN

    return _read(file, parse, repair)


def top_keys(file: File, repair: Callable[[], Repair] | None = None) -> Iterator[str]:
    """Yield the keys at the top of a file, as they come; none where the top is no object."""
    return _read(file, _keys, repair)


def _keys(source: _Source) -> Iterator[str]:
    for prefix, event, value in ijson.parse(source):
        if prefix == "" and event == "map_key":
            yield value


def _read(file: File, parse: Callable[[_Source], Iterator[T]], repair: Callable[[], Repair] | None) -> Iterator[T]:
    count = 0
    with opened(file) as content:
        try:
            for value in parse(_Source(content, file, repair)):
                yield value
                count += 1
        except ijson.JSONError as error:
            raise _fault(f"{file}", count, str(error)) from error
        except UnicodeDecodeError as error:
            raise _fault(f"{file}", count, "UTF-8") from error


def _fault(file: str, count: int, said: str) -> LoraFtError:
    place = f"{file}, after {count:,} objects"
    if "UTF8" in said or "UTF-8" in said or "utf-8" in said:
        return LoraFtError(f"{place}, is not UTF-8", "save the file as UTF-8")
    if "EOF" in said or "ncomplete" in said:
        return LoraFtError(f"{place}, is cut off", "export or copy it again")
    if "overflow" in said:
        return LoraFtError(f"{place}, has a number beyond 64 bits", "write it in quotes, or leave it out")
    first = (said.splitlines() or ["no reason"])[0].removeprefix("b")
    return LoraFtError(f"{place}, is not JSON ({first})", "export or copy it again")
