"""What options of several verbs may be."""

from __future__ import annotations

from enum import StrEnum


class SplitChoice(StrEnum):
    """A split of a task."""

    train = "train"
    validation = "validation"
    test = "test"


class EngineChoice(StrEnum):
    """Where packs train."""

    local = "local"
    ray = "ray"
