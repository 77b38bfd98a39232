"""Options that several verbs share, and the values they take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


class SplitChoice(StrEnum):
    """A split of a task."""

    train = "train"
    validation = "validation"
    test = "test"


class EngineChoice(StrEnum):
    """Where packs train."""

    local = "local"
    ray = "ray"
