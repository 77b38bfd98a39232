"""Options that several verbs share, and the values they take."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
GoOnFrom = Annotated[
    str | None, typer.Option("--from", metavar="ADAPTER", help="Go on from a run or a folder saved by peft.")
]


def going_on_from(adapter: str | None) -> list[str]:
    """Return the override of a task that `--from ADAPTER` stands for, as a list of one, or empty without it."""
    if adapter is None:
        return []
    return [f"lora.start_from={json.dumps(str(Path(adapter).expanduser().resolve()))}"]


class SplitChoice(StrEnum):
    """A split of a task."""

    train = "train"
    validation = "validation"
    test = "test"


class EngineChoice(StrEnum):
    """Where packs train."""

    local = "local"
    ray = "ray"
