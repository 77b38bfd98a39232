"""Building blocks of task sections: number types with bounds, and a base class that refuses unknown keys."""

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
"""Number of rows in a batch."""
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
"""Seed in the range that numpy, torch and transformers share."""
Share = Annotated[Real, Field(ge=0, lt=1)]
Dropout = Annotated[Real, Field(ge=0, le=0.9)]
"""Dropout rate. Above 0.9, a step on few rows can drop every path of the gradient."""


class Section(BaseModel):
    """Section of a task; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
