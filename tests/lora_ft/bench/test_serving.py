"""Simulated serving: every request is answered once, batches grow with the load, and the knee is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench import serving
from lora_ft.bench.engines import parse
from lora_ft.bench.models import BenchModel
from lora_ft.bench.report import Load
from lora_ft.bench.runner import TimedEngine
from lora_ft.bench.statistics import percentiles
from lora_ft.bench.suite import Serving


class Clock:
    """A clock that advances only when `sleep` or an engine is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds + 1e-9


class Service:
    """An engine that takes a fixed time for a batch, and a fixed time for each of its rows."""

    def __init__(self, clock: Clock, base: float, row: float) -> None:
        self._clock, self._base, self._row = clock, base, row
        self.batches: list[int] = []

    def send(self, call: str, *, ids: Sequence[Sequence[int]], **_: Any) -> None:
        assert call == "generate"
        self.batches.append(len(ids))
        self._clock.now += self._base + self._row * len(ids)

    def reply(self) -> dict[str, Any]:
        return {"tokens": [[1]] * self.batches[-1]}


def offered(rate: float, settings: Serving, base: float = 0.1, row: float = 0.01) -> tuple[Load, Service]:
    """Return the result of `serve` for a simulated engine and clock."""
    clock = Clock()
    engine = TimedEngine("x", BenchModel("x", None, None), parse("onnx/fp32"), 1, "cpu")  # type: ignore[arg-type]
    service = Service(clock, base, row)
    engine.process = service  # type: ignore[assignment]
    answered: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "time", clock)
        load = serving.serve(
            engine, [[3, 1], [4, 1]], rate, 8, settings, seed=1, after_answer=lambda: answered.append(1)
        )
    assert len(answered) == sum(service.batches) == settings.requests
    return load, service


@given(
    st.floats(0.1, 100), st.integers(1, 60), st.integers(1, 9), st.floats(0, 0.5), st.floats(0, 0.2), st.floats(0, 0.1)
)
def test_every_request_is_answered_after_its_arrival(
    rate: float, requests: int, batch: int, wait: float, base: float, row: float
) -> None:
    settings = Serving(requests=requests, max_batch=batch, max_wait=wait, slo=1.0)
    load, service = offered(rate, settings, base, row)
    assert len(load.seconds) == requests
    assert min(load.seconds) >= base + row - 1e-6
    assert max(service.batches) <= batch
    assert math.isclose(load.batch, float(np.mean(service.batches)))
    assert load.goodput <= load.answered * (1 + 1e-9)


def test_batches_and_latency_grow_with_the_load() -> None:
    settings = Serving(requests=300, max_batch=8, slo=0.5)
    loads = [offered(rate, settings)[0] for rate in (1, 5, 20, 60)]
    assert [load.batch for load in loads] == sorted(load.batch for load in loads)
    assert loads[0].batch < 1.2 and loads[-1].batch > 7
    middles = [float(np.median(load.seconds)) for load in loads]
    assert middles == pytest.approx(sorted(middles))
    assert loads[0].goodput == pytest.approx(loads[0].answered)
    assert loads[-1].goodput < loads[-1].answered / 2  # 8 in 0.18 s are 44 per second, so at 60 the queue grows
    assert serving.knee(loads, 0.5) == 20


def test_idle_engine_waits_for_more_requests_up_to_max_wait() -> None:
    alone = offered(10, Serving(requests=100, max_batch=8))[0]
    together = offered(10, Serving(requests=100, max_batch=8, max_wait=0.5))[0]
    assert together.batch > 1.5 * alone.batch


def test_no_knee_if_the_smallest_load_is_too_large() -> None:
    slow = Load(offered=1, answered=1, seconds=[2.0] * 20, percentiles=percentiles([2.0] * 20), goodput=0, batch=1)
    fast = slow.model_copy(update={"offered": 2.0, "seconds": [0.1] * 20})
    assert serving.knee([slow, fast], 1.0) is None
    assert serving.knee([fast], 1.0) == 2
    assert serving.knee([], 1.0) is None
