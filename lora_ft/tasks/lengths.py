"""Section `lengths` of a task: maximum lengths, in tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_ft.tasks.fields import Section, Whole


class Lengths(Section):
    """Maximum lengths, in tokens, including </s>."""

    source: Annotated[Whole, Field(ge=8, le=100_000)] = 512
    """Maximum prompt length; longer prompts are cut at their end."""
    target: Annotated[Whole, Field(ge=2, le=100_000)] = 128
    """Maximum target length in training."""
    long_targets: Literal["error", "cut", "drop"] = "error"
    """Action on a training or validation row with a longer target."""
