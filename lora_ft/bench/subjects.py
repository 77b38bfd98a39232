"""The servers that a benchmark measures, as a user names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_ft.bench.http_client import HttpClient
from lora_ft.core.errors import UsageError

Kind = Literal["url", "command", "engine"]
_NAME = re.compile(r"([\w.@+-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """A server to measure.

    Attributes:
        name: Unique name in the report.
        kind: "url", "command", or "engine" for a bundle without HTTP.
        source: Address, command with {port}, or folder of the bundle.
        models: Models to send requests to, in turn. Default: all that the server lists.
        stream: Ask for streams.
        threads: Threads per call of an engine. Default: all cores.
    """

    name: str
    kind: Kind
    source: str
    models: tuple[str, ...] = ()
    stream: bool = True
    threads: int | None = None


def subjects_of(
    urls: Sequence[str], commands: Sequence[str], bundles: Sequence[str], models: Sequence[str], *, stream: bool
) -> list[Subject]:
    """Return the servers that arguments name, each as SOURCE or NAME=SOURCE.

    Args:
        urls: Addresses of running servers.
        commands: Commands that start servers.
        bundles: Bundles to run without HTTP.
        models: Models of all servers. Default: all that each lists.
        stream: Ask for streams.

    Raises:
        UsageError: There is no server, two have the same name, or an address is malformed.
    """
    sources: list[tuple[Kind, str]] = [
        *(("url", source) for source in urls),
        *(("command", source) for source in commands),
        *(("engine", source) for source in bundles),
    ]
    for url in urls:
        HttpClient(url.partition("=")[2] if _NAME.fullmatch(url) else url)  # raises if the address is invalid
    subjects = []
    for kind, argument in sources:
        match = _NAME.fullmatch(argument)
        name, source = match.groups() if match else (_default_name(kind, argument), argument)
        subjects.append(Subject(name, kind, source, tuple(models), stream))
    if not subjects:
        raise UsageError("there is no server to measure", "pass --url, --start or --engine-only")
    require_distinct(subjects)
    return subjects


def require_distinct(subjects: Sequence[Subject]) -> None:
    """Raise UsageError if two servers have the same name."""
    names = [subject.name for subject in subjects]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two servers are named {name!r}", "write another NAME= in front of one of them")


def _default_name(kind: Kind, source: str) -> str:
    if kind == "engine":
        return f"{Path(source).resolve().name} without HTTP"
    return source.split()[0].rsplit("/", 1)[-1] if kind == "command" and source.split() else source
