"""What the sections of a task are made of: unknown keys are faults, and numbers are numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Positive = Annotated[Whole, Field(ge=1, le=10**9)]
NotNegative = Annotated[Whole, Field(ge=0, le=10**9)]
Rows = Annotated[Whole, Field(ge=1, le=100_000)]
"""Rows of a batch."""
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
"""What numpy, torch and transformers all take."""
Share = Annotated[Real, Field(ge=0, lt=1)]
Dropout = Annotated[Real, Field(ge=0, le=0.9)]
"""Rate of dropout. Above it a step on few rows can drop every path of the gradient."""


class Section(BaseModel):
    """A part of a task; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
