"""What a benchmark found: one versioned JSON file, from which the page, the Markdown and comparisons are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from lora_ft.bench.suite import Suite
from lora_ft.bench.versioned_json import VERSION, Record, Strict

SCHEMA = Path(__file__).with_name("report.schema.json")


class Interval(Strict):
    """A median or mean with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class EngineReport(Strict):
    """An engine with a model, a precision and a number of threads.

    Attributes:
        name: unique in the report; rows of all tables go by it.
        engine, precision, model, threads, provider: what it is.
        megabytes: of the files that it loads.
        imports: seconds to import its packages.
        cold, warm: seconds to load the model with its files out of and in the file cache.
        peak, steady: megabytes resident at most, and after all timings.
        error: why it takes no part (further), or "".
    """

    name: str
    engine: str
    precision: str
    model: str
    threads: int
    provider: str
    megabytes: float | None = None
    imports: float | None = None
    cold: float | None = None
    warm: float | None = None
    peak: float | None = None
    steady: float | None = None
    error: str = ""


class Percentiles(Strict):
    """Seconds. None where there are fewer samples than MLPerf's rules ask for: 11, 64 and 662."""

    samples: int
    p50: float | None
    p90: float | None
    p99: float | None


class Timing(Strict):
    """One contestant at one case. Lists hold a value for each round.

    Attributes:
        total, first: seconds to all tokens, and to the first one.
        encoder: seconds of the encoder alone; empty where the engine does not let it be called.
        cpu: seconds of all cores for all tokens.
        joules: of package and memory, or of the GPU; empty where they cannot be read.
        per_token: median seconds between two tokens after the first.
        tokens_per_second: over all rows, of the median total.
        percentiles: of `total`.
        ratio: how many times as fast as the first contestant, within a round.
        floor: share of the physical floor: seconds that the bytes of a step take at the measured bandwidth, over
            `per_token`; None where the bytes are not known, and on GPUs.
        identical: share of rows whose tokens are the reference's (the first contestant that rounds nothing).
        spread: between rounds: the interquartile range of `total` over its median.
    """

    total: list[float]
    first: list[float]
    encoder: list[float]
    cpu: list[float]
    joules: list[float]
    per_token: float
    tokens_per_second: float
    percentiles: Percentiles
    ratio: Interval
    floor: float | None
    identical: float | None
    spread: float


class Case(Strict):
    """Rows, tokens in, tokens out (forced) and how they are chosen; timings by contestant."""

    batch: int
    source: int
    new: int
    decoding: str
    timings: dict[str, Timing]

    @property
    def label(self) -> str:
        """The case in words."""
        return f"batch {self.batch}, {self.source} tokens in, {self.new} out, {self.decoding}"


class Quality(Strict):
    """Answers of one contestant to real rows, at the length that they come to.

    Attributes:
        rows: how many.
        metric: of the task.
        score: 0 to 100.
        difference: from the reference's, paired; None for the reference.
        identical: share of texts that are the reference's.
        tokens: of an answer, in the mean.
        seconds: for all rows, in batches of 8 of like length.
    """

    rows: int
    metric: str
    score: Interval
    difference: Interval | None
    identical: float
    tokens: float
    seconds: float


class Load(Strict):
    """One contestant under one offered load. Latencies are from a request's arrival to its answer.

    Attributes:
        offered, answered: requests a second.
        seconds: latency of each request.
        percentiles: of them.
        goodput: answers within the SLO a second.
        batch: requests answered together, in the mean.
    """

    offered: float
    answered: float
    seconds: list[float]
    percentiles: Percentiles
    goodput: float
    batch: float


class Service(Strict):
    """One contestant under growing load. The knee is the largest load that it keeps up with, within the SLO."""

    loads: list[Load]
    knee: float | None


class Harness(Strict):
    """What the harness itself took: share of the time of all timed calls."""

    seconds: float
    share: float


class BenchReport(Record):
    """All of it.

    Attributes:
        version: of this format.
        suite: what was asked for.
        environment: facts by name.
        began: UTC, ISO 8601.
        seconds: it took.
        interrupted: whether it was stopped before the end.
        reference: the contestant that texts and tokens are compared with.
        bandwidth: bytes a second that this machine's cores read from memory.
        verdict: whether rounds agree; `warnings` says where not, and what else a reader must know.
    """

    version: Literal[1] = VERSION  # type: ignore[assignment]
    suite: Suite
    environment: dict[str, str]
    began: str
    seconds: float
    interrupted: bool
    reference: str
    bandwidth: float
    contestants: list[EngineReport]
    cases: list[Case]
    quality: dict[str, Quality]
    serving: dict[str, Service]
    harness: Harness
    verdict: Literal["stable", "unstable"]
    warnings: list[str]


def schema() -> str:
    """The JSON Schema of a report, as `SCHEMA` holds it."""
    return json.dumps(BenchReport.model_json_schema(), indent=1) + "\n"
