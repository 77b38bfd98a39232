"""What a benchmark measures: engines, shapes, rounds. Suites are YAML files; those in `suites/` go by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from lora_ft.bench.engines import parse
from lora_ft.bench.versioned_json import Strict, first_fault
from lora_ft.core.errors import UsageError
from lora_ft.tasks.plain_yaml import read_yaml

Decoding = Literal["greedy", "beams", "sample", "lookup"]
Positive = Annotated[float, Field(gt=0)]
SUITES = Path(__file__).with_name("suites")


class Serving(Strict):
    """Poisson arrivals of real rows at a queue whose waiting requests are answered together."""

    loads: tuple[Positive, ...] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2)
    """Offered, as shares of what the first engine answers in full batches."""
    requests: PositiveInt = 200
    """At each load."""
    max_batch: PositiveInt = 8
    max_wait: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that a request waits for others while the engine is idle."""
    slo: Positive = 1.0
    """Seconds within which an answer is good."""


class Suite(Strict):
    """Every combination of the lists is timed."""

    name: str
    about: str = ""
    engines: tuple[str, ...]
    """`engine/precision`, e.g. onnx/int8-w4 (see `lora_ft.bench.engines`). Ratios are to the first."""
    batch: tuple[PositiveInt, ...] = (1, 8)
    source: tuple[PositiveInt, ...] = (128,)
    """Tokens in, the same for all rows."""
    new: tuple[Annotated[int, Field(ge=2)], ...] = (64,)
    """Tokens out, forced."""
    threads: tuple[PositiveInt | None, ...] = (None,)
    """Of one call; none: the cores this process may use."""
    decoding: tuple[Decoding, ...] = ("greedy",)
    provider: tuple[Literal["cpu", "cuda"], ...] = ("cpu",)
    rounds: PositiveInt = 11
    rows: Annotated[int, Field(ge=0)] = 0
    """Rows of the task's test split that every engine answers at their natural length, for ROUGE; 0: none."""
    seed: int = 0
    serving: Serving | None = None

    @field_validator("engines")
    @classmethod
    def _known(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        if not engines or len(set(engines)) < len(engines):
            raise ValueError("name at least one engine, and none twice")
        for engine in engines:
            parse(engine)
        return engines

    @classmethod
    def load(cls, name: str, overrides: Mapping[str, Any] | None = None) -> Suite:
        """A suite by its name or from a file; values of `overrides` that are given take the place of its own.

        Raises:
            UsageError: there is none, it is no YAML, or a key of it is wrong (the first fault is named).
        """
        file = SUITES / f"{name}.yaml" if name in names() else Path(name)
        if not file.is_file():
            raise UsageError(f"there is no suite {name!r}", f"one of {', '.join(names())}, or a YAML file")
        raw = read_yaml(file).value
        if not isinstance(raw, dict):
            raise UsageError(f"{file} is no mapping of keys to values")
        given = {key: value for key, value in (overrides or {}).items() if value not in (None, (), [])}
        try:
            return cls.model_validate({"name": file.stem, **raw, **given})
        except ValidationError as error:
            raise UsageError(f"{file}: {first_fault(error)}") from error


def names() -> list[str]:
    """The suites that ship."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))
