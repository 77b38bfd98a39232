"""Suites of benchmarks: engines, cases and rounds. A suite is a YAML file; files in `suites/` have a short name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from lora_ft.bench.engines import parse
from lora_ft.bench.versioned_json import Strict, first_error
from lora_ft.core.errors import UsageError
from lora_ft.tasks.plain_yaml import read_yaml

Decoding = Literal["greedy", "beams", "sample", "lookup"]
Positive = Annotated[float, Field(gt=0)]
SUITES = Path(__file__).with_name("suites")


class Serving(Strict):
    """Simulated requests: real rows arrive as a Poisson process, and waiting requests are answered together."""

    loads: tuple[Positive, ...] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2)
    """Offered loads, as shares of the first engine's throughput in full batches."""
    requests: PositiveInt = 200
    """Requests at each load."""
    max_batch: PositiveInt = 8
    max_wait: Annotated[float, Field(ge=0)] = 0.0
    """Time that a request waits for others while the engine is idle, in seconds."""
    slo: Positive = 1.0
    """Latency limit of a good answer, in seconds."""


class Suite(Strict):
    """Engines and cases of a benchmark. Every combination of the lists is timed."""

    name: str
    about: str = ""
    engines: tuple[str, ...]
    """`engine/precision`, e.g. onnx/int8-w4 (see `lora_ft.bench.engines`). Speed-ups are over the first."""
    batch: tuple[PositiveInt, ...] = (1, 8)
    source: tuple[PositiveInt, ...] = (128,)
    """Prompt length of all rows, in tokens."""
    new: tuple[Annotated[int, Field(ge=2)], ...] = (64,)
    """Forced answer length, in tokens."""
    threads: tuple[PositiveInt | None, ...] = (None,)
    """Threads of one call; None for all cores that this process may use."""
    decoding: tuple[Decoding, ...] = ("greedy",)
    provider: tuple[Literal["cpu", "cuda"], ...] = ("cpu",)
    rounds: PositiveInt = 11
    rows: Annotated[int, Field(ge=0)] = 0
    """Test rows that every engine answers at natural length, to be scored; 0 for none."""
    seed: int = 0
    serving: Serving | None = None

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        if not engines or len(set(engines)) < len(engines):
            raise ValueError("engines are missing or repeated; name at least one engine, and none twice")
        for engine in engines:
            parse(engine)
        return engines

    @classmethod
    def load(cls, name: str, overrides: Mapping[str, Any] | None = None) -> Suite:
        """Return a suite by its name or from a file, with the keys in `overrides` replaced.

        Values of `overrides` that are None or empty are ignored.

        Raises:
            UsageError: The suite does not exist, is not YAML, or has a wrong key.
        """
        file = SUITES / f"{name}.yaml" if name in names() else Path(name)
        if not file.is_file():
            raise UsageError(f"suite {name!r} does not exist", f"choose one of {', '.join(names())}, or a YAML file")
        raw = read_yaml(file).value
        if not isinstance(raw, dict):
            raise UsageError(f"{file} is not a mapping of keys to values")
        changes = {key: value for key, value in (overrides or {}).items() if value not in (None, (), [])}
        try:
            return cls.model_validate({"name": file.stem, **raw, **changes})
        except ValidationError as error:
            raise UsageError(f"{file}: {first_error(error)}") from error


def names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))
