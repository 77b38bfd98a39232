"""What the sections of a task are made of: unknown keys are faults, and numbers are numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number, not true or false")
    return value


Positive = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
NotNegative = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0)]
Seed = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a task; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
