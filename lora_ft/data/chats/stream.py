"""Bounded, object-by-object reading of JSON files of any size. Every failure is a LoraFtError.

ijson parses, and `_Source` sits between ijson and the file. A `repair` may rewrite each chunk, `JsonLimits` checks it
before ijson sees it, and one object may take at most `MAX_OBJECT` bytes.
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
"""Maximum size of an object built in memory, in bytes of the file."""
_CHUNK = 1 << 16
_BOM, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class _Source:
    """Byte stream of a file for ijson: without a byte order mark, repaired and bounded."""

    def __init__(self, content: IO[bytes], file: File, repair: Callable[[], Repair] | None) -> None:
        self._content, self._file = content, file
        self._repair = repair() if repair is not None else None
        self._limits = JsonLimits(file)
        self._offset, self._start = 0, -1

    def read(self, size: int = _CHUNK) -> bytes:
        """Return the next chunk, or b"" at the end. `size` is a hint, in bytes."""
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
                "check the origin of the file; no chat program writes such messages",
            )
        chunk = self._content.read(_CHUNK)
        if self._offset == 0 and chunk.startswith(_UTF16):
            raise LoraFtError(f"{self._file} is UTF-16, not UTF-8", "save the file as UTF-8")
        self._offset += len(chunk)
        return chunk.removeprefix(_BOM) if self._offset == len(chunk) else chunk

    def begin_object(self) -> None:
        """Record that an object begins near this position, so that `read` bounds its size."""
        self._start = self._offset

    def end_object(self) -> None:
        """Record that no object is being built."""
        self._start = -1


def objects(file: File, prefix: str, repair: Callable[[], Repair] | None = None) -> Iterator[Any]:
    """Yield the values at an ijson prefix, e.g. "messages.item", one at a time.

    Args:
        file: File with UTF-8 text.
        prefix: Path of keys, in which "item" means every element of a list.
        repair: Factory of a function that rewrites the chunks of a file in order. The function may hold back bytes
            until the next call, and returns the rest when called with b"" at the end.

    Raises:
        LoraFtError: The file is cut off, not JSON, not UTF-8 or out of bounds. The error states the number of values
            read before.
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
"""Value that `walk` yields at the beginning of an object."""


def walk(
    file: File,
    prefixes: Collection[str],
    repair: Callable[[], Repair] | None = None,
    *,
    begins: Collection[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Yield (prefix, value) for the values at several prefixes, in the order of the file.

    Args:
        file: See `objects`.
        prefixes: Prefixes of the values.
        repair: See `objects`.
        begins: Prefixes of objects whose beginning alone is yielded, as (prefix, `BEGIN`).

    Raises:
        LoraFtError: See `objects`.
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
    """Yield the top-level keys of a file in order. A file without a top-level object has none."""
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
            raise _error(f"{file}", count, str(error)) from error
        except UnicodeDecodeError as error:
            raise _error(f"{file}", count, "UTF-8") from error


def _error(file: str, count: int, reason: str) -> LoraFtError:
    place = f"{file}, after {count:,} objects"
    if "UTF8" in reason or "UTF-8" in reason or "utf-8" in reason:
        return LoraFtError(f"{place}, is not UTF-8", "save the file as UTF-8")
    if "EOF" in reason or "ncomplete" in reason:
        return LoraFtError(f"{place}, is cut off", "export or copy it again")
    if "overflow" in reason:
        return LoraFtError(f"{place}, has a number beyond 64 bits", "write it in quotes, or remove it")
    first = (reason.splitlines() or ["no reason"])[0].removeprefix("b")
    return LoraFtError(f"{place}, is not JSON ({first})", "export or copy it again")
