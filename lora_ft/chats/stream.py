"""JSON of any size, object by object: what ijson gives, and what is wrong with the file in our words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar
from zipfile import Path as ZipPath

import ijson

from export.errors import LoraFtError

File = Path | ZipPath
T = TypeVar("T")


def objects(file: File, prefix: str) -> Iterator[Any]:
    """The values at a prefix of ijson's, e.g. "messages.item", one after the other.

    Raises:
        LoraFtError: the file is cut off, no JSON or not UTF-8; it says after how many of them.
    """
    return read(file, lambda content: ijson.items(content, prefix, use_float=True))


def read(file: File, parse: Callable[[IO[bytes]], Iterator[T]]) -> Iterator[T]:
    """What `parse` makes of a file; errors as of `objects`, counted in what it makes."""
    count = 0
    with file.open("rb") as content:
        if content.read(3) != b"\xef\xbb\xbf":
            content.seek(0)
        try:
            for value in parse(content):
                yield value
                count += 1
        except ijson.JSONError as error:
            raise _fault(f"{file}", count, str(error)) from error


def top_keys(content: IO[bytes]) -> Iterator[str]:
    """The keys at the top of a file, as they come."""
    return (value for prefix, event, value in ijson.parse(content) if prefix == "" and event == "map_key")


def _fault(file: str, count: int, said: str) -> LoraFtError:
    place = f"{file}, after {count:,} objects"
    if "UTF8" in said or "UTF-8" in said or "utf-8" in said:
        return LoraFtError(f"{place}, is not UTF-8", "save the file as UTF-8")
    if "EOF" in said or "ncomplete" in said:
        return LoraFtError(f"{place}, is cut off", "export or copy it again")
    return LoraFtError(f"{place}, is not JSON ({said.splitlines()[0].removeprefix('b')})", "export or copy it again")
