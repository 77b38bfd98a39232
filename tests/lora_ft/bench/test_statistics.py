"""Percentiles require enough samples, ratios are computed within rounds, and disagreeing rounds cause warnings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.statistics import median, needed, percentile, percentiles, ratio, spread, steadiness

Seconds = st.floats(1e-4, 100)


@pytest.mark.parametrize(("share", "count"), [(0.5, 11), (0.9, 64), (0.99, 662)])
def test_percentiles_require_the_samples_of_mlperf(share: float, count: int) -> None:
    assert needed(share) == count


@given(st.floats(0.05, 0.995))
def test_needed_is_the_smallest_sufficient_number_of_samples(share: float) -> None:
    def chance(count: int) -> float:
        """Return the probability of at most one sample above a bound that a sample exceeds with 1 - share."""
        return share**count + count * (1 - share) * share ** (count - 1)

    count = needed(share)
    assert chance(count) <= 0.01 + 1e-12
    assert count == 2 or chance(count - 1) > 0.01


def test_p99_of_fifty_samples_is_none() -> None:
    estimate = percentiles([0.1] * 50)
    assert (estimate.samples, estimate.p50, estimate.p90, estimate.p99) == (50, 0.1, None, None)


@given(st.lists(Seconds, min_size=64, max_size=200))
def test_percentile_is_the_sample_at_its_share(values: list[float]) -> None:
    estimate = percentile(values, 0.9)
    assert estimate in values
    assert np.mean([value <= estimate for value in values]) >= 0.9
    assert np.mean([value < estimate for value in values]) < 0.9


@given(
    st.lists(Seconds, min_size=1, max_size=20),
    st.lists(st.floats(0.2, 5), min_size=20, max_size=20),
    st.floats(0.1, 10),
)
def test_slow_rounds_cancel_out_in_the_ratio(base: list[float], drift: list[float], factor: float) -> None:
    baseline = [value * slow for value, slow in zip(base, drift, strict=False)]
    times = [value / factor for value in baseline]
    estimate = ratio(baseline, times, seed=0)
    assert all(math.isclose(value, factor, rel_tol=1e-9) for value in (estimate.value, estimate.low, estimate.high))


def test_interval_contains_the_median_and_narrows_with_more_rounds() -> None:
    rng = np.random.default_rng(0)
    with_few, with_many = (median(rng.lognormal(0, 0.1, count), seed=1) for count in (7, 700))
    assert with_few.low <= with_few.value <= with_few.high
    assert with_many.high - with_many.low < (with_few.high - with_few.low) / 3


def test_disagreeing_rounds_cause_warnings() -> None:
    assert spread([1.0]) == spread([2.0, 2.0, 2.0]) == 0
    assert steadiness({}) == steadiness({"a": 0.01, "b": 0.04}) == []
    (alone,) = steadiness({"a": 0.01, "b": 0.01, "c": 0.5})
    assert alone.startswith("c: rounds differ by 50%")
    assert "check that the machine is idle" in steadiness({"a": 0.1, "b": 0.1})[-1]
