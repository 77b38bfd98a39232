"""Artificial reports with the size and the spread of measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from lora_ft.bench import statistics
from lora_ft.bench.report import (
    BenchReport,
    Case,
    EngineReport,
    Harness,
    Interval,
    Load,
    Percentiles,
    Quality,
    Service,
    Timing,
)
from lora_ft.bench.suite import Serving, Suite

AWKWARD = ('torch/fp32 <script>alert("1")</script>', "onnx/fp32 & more", "my|own_engine/*int8*")
SPEEDS = (1.0, 1.7, 2.9, 4.2, 3.1, 1.1, 2.2, 1.6, 2.6, 3.6, 2.0, 3.9, 3.3)
SLO = 0.5


def complete(
    names: Sequence[str] = AWKWARD, batches: Sequence[int] = (1, 8), sources: Sequence[int] = (128,), rounds: int = 11
) -> BenchReport:
    """Return a report with all sections. Each engine has its own speed."""
    rng = np.random.default_rng(7)
    suite = Suite(
        name="latency & <more>",
        about="Our precisions against PyTorch, for one request at a time and for small batches.",
        engines=("torch/fp32", "onnx/fp32", "onnx/int8"),
        batch=tuple(batches),
        source=tuple(sources),
        rounds=rounds,
        rows=100,
        serving=Serving(slo=SLO),
    )
    speeds = dict(zip(names, SPEEDS, strict=False))
    return BenchReport(
        suite=suite,
        environment={
            "cpu": "Intel(R) Xeon(R) Processor <2 cores> @ 2.60 GHz",
            "cpu flags": "avx2 avx512f avx512_vnni amx_int8 avx512_bf16",
            "python": "3.11.2",
            "onnxruntime": "1.22.0",
            "git": "c5adaee | dirty",
        },
        began="2025-06-01T09:30:12+00:00",
        seconds=4127.3,
        interrupted=False,
        reference=names[0],
        bandwidth=18.3e9,
        contestants=[_contestant(name, at) for at, name in enumerate(names)],
        cases=[
            Case(
                batch=batch,
                source=source,
                new=64,
                decoding="greedy",
                timings=_timings(rng, speeds, batch, source, rounds),
            )
            for source, batch in product(sources, batches)
        ],
        quality={name: _quality(rng, at, speed) for at, (name, speed) in enumerate(speeds.items())},
        serving={name: _service(rng, speed) for name, speed in list(speeds.items())[:3]},
        harness=Harness(seconds=0.71, share=0.0021),
        verdict="stable",
        warnings=[],
    )


def broken() -> BenchReport:
    """Return an interrupted report without quality and serving: one engine is wrong, and one never started."""
    whole = complete(("onnx/fp32", "onnx/int8", "torch/bf16"))
    why = "it ended: <RuntimeError> no kernel for bf16 | exit code 1"
    first, second, third = whole.contestants
    case = whole.cases[0]
    timings = {name: timing for name, timing in case.timings.items() if name != third.name}
    return whole.model_copy(
        update={
            "contestants": [
                first,
                second.model_copy(update={"error": "wrong: its tokens differ from the reference's in 3 of 9 rows"}),
                EngineReport(
                    name=third.name,
                    engine="torch",
                    precision="bf16",
                    model="m",
                    threads=2,
                    provider="cpu",
                    megabytes=None,
                    error=why,
                ),
            ],
            "cases": [case.model_copy(update={"timings": timings})],
            "quality": {},
            "serving": {},
            "interrupted": True,
            "verdict": "unstable",
            "warnings": [f"{third.name}: {why}", "rounds differ by 12 % in the median of all timings"],
        }
    )


def _contestant(name: str, at: int) -> EngineReport:
    return EngineReport(
        name=name,
        engine=name.split("/")[0],
        precision="fp32",
        model="flan-t5-small",
        threads=2,
        provider="cpu",
        megabytes=308.2 / (1 + at % 4),
        imports=2.31 - 0.13 * at,
        cold=None if at % 3 == 2 else 3.4 / (1 + at),
        warm=0.82 / (1 + at),
        peak=1212.0 - 70 * at,
        steady=903.5 - 66 * at,
    )


def _timings(
    rng: np.random.Generator, speeds: dict[str, float], batch: int, source: int, rounds: int
) -> dict[str, Timing]:
    timings: dict[str, Timing] = {}
    base: list[float] = []
    for at, (name, speed) in enumerate(speeds.items()):
        usual = 0.9 * (0.6 + 0.4 * batch ** (0.8 + 0.03 * (at % 4))) * (1 + source / 1024) / speed
        total = (usual * rng.lognormal(0, 0.03, rounds)).tolist()
        base = base or total
        timings[name] = Timing(
            total=total,
            first=[value / 6 for value in total],
            encoder=[] if at == 0 else [value / 9 for value in total],
            cpu=[1.9 * value for value in total],
            joules=[],
            per_token=usual * 5 / 6 / 63,
            tokens_per_second=batch * 64 / usual,
            percentiles=statistics.percentiles(total),
            ratio=statistics.ratio(base, total, 0),
            floor=None if at % 3 == 2 else 0.0046 / (1 + at % 4) / (usual * 5 / 6 / 63),
            identical=1.0 if at < 2 else 1 - 0.03125 * at,
            spread=statistics.spread(total),
        )
    return timings


def _quality(rng: np.random.Generator, at: int, speed: float) -> Quality:
    score = 41.3 - 0.4 * (at % 5) + float(rng.normal(0, 0.15))
    return Quality(
        rows=100,
        metric="ROUGE-1",
        score=Interval(value=score, low=score - 2.1, high=score + 2.2),
        difference=Interval(value=score - 41.3, low=score - 42.0, high=score - 40.7) if at else None,
        identical=1.0 if at < 2 else 0.83,
        tokens=24.31,
        seconds=61.0 / speed,
    )


def _service(rng: np.random.Generator, speed: float) -> Service:
    capacity, loads = 5.3 * speed, []
    for offered in (1.6, 2.65, 3.7, 4.5, 5.3, 6.4):
        busy = offered / capacity
        mean = 0.12 / speed * (1 + busy / max(1 - busy, 0.06))
        seconds = (mean * rng.lognormal(0, 0.5, 200)).tolist()
        answered = min(offered, capacity)
        good = answered * sum(value <= SLO for value in seconds) / len(seconds)
        percentiles: Percentiles = statistics.percentiles(seconds)
        batch = 1 + 7 * min(busy, 1.0) ** 3
        loads.append(
            Load(
                offered=offered, answered=answered, seconds=seconds, percentiles=percentiles, goodput=good, batch=batch
            )
        )
    knees = [load.offered for load in loads if load.goodput >= 0.9 * load.offered]
    return Service(loads=loads, knee=max(knees, default=None))
