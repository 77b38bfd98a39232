"""The report of a benchmark: one versioned JSON file, from which tables, charts and comparisons derive."""

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
        name: Unique name in the report, used by all tables.
        engine, precision, model, threads, provider: Subject of the measurement.
        megabytes: Size of the files that the engine loads.
        imports: Time to import its packages, in seconds.
        cold, warm: Time to load the model with its files out of and in the file cache, in seconds.
        peak, steady: Resident memory at its maximum, and after all timings, in megabytes.
        weights_in: Memory that the weights of a step lie in between steps: "cache" if they fit the processor's caches,
            else "DRAM". None if unknown, and on GPUs.
        steps_by: What takes the decoder's steps of a bundle: the kernel, or the graphs and why. None for other engines.
        encoder_by: What encodes sources of a bundle: the kernel, or the graph and why. None for other engines.
        error: Reason why the engine was excluded, or "".
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
    weights_in: Literal["cache", "DRAM"] | None = None
    steps_by: str | None = None
    encoder_by: str | None = None
    error: str = ""


class Percentiles(Strict):
    """Percentiles, in seconds; None with fewer samples than MLPerf's rules require: 11, 64 and 662."""

    samples: int
    p50: float | None
    p90: float | None
    p99: float | None


class Timing(Strict):
    """Times of one engine at one case. Lists hold one value for each round.

    Attributes:
        total, first: Time to all tokens, and to the first one, in seconds.
        encoder: Time of the encoder alone, in seconds; empty if the engine cannot run it separately.
        cpu: CPU time of all cores for all tokens, in seconds.
        joules: Energy of package and memory, or of the GPU; empty if it cannot be read.
        per_token: Median time of a token after the first, in seconds.
        tokens_per_second: Speed over all rows, from the median total.
        percentiles: Percentiles of `total`.
        ratio: Speed-up over the first engine, within a round.
        floor: Share of the roofline: the time to read a step's weights from the memory that they lie in, over
            `per_token`. None if the number of bytes is unknown, and on GPUs.
        identical: Share of rows with the reference's tokens (the first engine in full precision).
        spread: Interquartile range of `total` over its median.
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
    """Batch size, tokens in, tokens out (forced) and decoding; timings by engine."""

    batch: int
    source: int
    new: int
    decoding: str
    timings: dict[str, Timing]

    @property
    def label(self) -> str:
        """Return the case in words."""
        return f"batch {self.batch}, {self.source} tokens in, {self.new} out, {self.decoding}"


class Quality(Strict):
    """Answers of one engine to real rows, at their natural length.

    Attributes:
        rows: Number of rows.
        metric: The task's metric.
        score: Score, from 0 to 100.
        difference: Paired difference from the reference's score; None for the reference.
        identical: Share of texts that equal the reference's.
        tokens: Mean length of an answer.
        seconds: Time for all rows, in batches of 8 rows of similar length.
    """

    rows: int
    metric: str
    score: Interval
    difference: Interval | None
    identical: float
    tokens: float
    seconds: float


class Load(Strict):
    """One engine under one offered load. A latency lasts from a request's arrival to its answer.

    Attributes:
        offered, answered: Requests per second.
        seconds: Latency of each request.
        percentiles: Percentiles of the latencies.
        goodput: Answers within the SLO, per second.
        batch: Mean number of requests answered together.
    """

    offered: float
    answered: float
    seconds: list[float]
    percentiles: Percentiles
    goodput: float
    batch: float


class Service(Strict):
    """One engine under growing load. The knee is the largest load that it keeps up with, within the SLO."""

    loads: list[Load]
    knee: float | None


class Harness(Strict):
    """Time of the harness itself, and its share of the time of all timed calls."""

    seconds: float
    share: float


class BenchReport(Record):
    """The report of a benchmark.

    Attributes:
        version: Version of this format.
        suite: The measured suite.
        environment: Machine and versions, by name.
        began: Start, in UTC and ISO 8601.
        seconds: Duration.
        interrupted: True if the benchmark was stopped before its end.
        reference: The engine that texts and tokens are compared with.
        bandwidth: DRAM bandwidth of this machine's cores, in bytes per second.
        contestants: The measured engines.
        verdict: "stable" if there are at least five rounds, and they agree.
        warnings: Timings whose rounds disagree, and other problems.
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
    """Return the JSON Schema of a report, the content of `SCHEMA`."""
    return json.dumps(BenchReport.model_json_schema(), indent=1) + "\n"
