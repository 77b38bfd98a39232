"""Percentiles stand on enough samples, ratios are taken within rounds, and rounds that disagree are noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.statistics import median, needed, percentile, percentiles, ratio, spread, steadiness

Seconds = st.floats(1e-4, 100)


@pytest.mark.parametrize(("share", "count"), [(0.5, 11), (0.9, 64), (0.99, 662)])
def test_percentiles_ask_for_as_many_samples_as_mlperf(share: float, count: int) -> None:
    assert needed(share) == count


@given(st.floats(0.05, 0.995))
def test_so_many_samples_are_needed_that_two_of_them_lie_beyond(share: float) -> None:
    def chance(count: int) -> float:
        """Of at most one sample above a bound that more than 1 - share of all are above."""
        return share**count + count * (1 - share) * share ** (count - 1)

    count = needed(share)
    assert chance(count) <= 0.01 + 1e-12
    assert count == 2 or chance(count - 1) > 0.01


def test_a_p99_of_fifty_samples_is_refused() -> None:
    found = percentiles([0.1] * 50)
    assert (found.samples, found.p50, found.p90, found.p99) == (50, 0.1, None, None)


@given(st.lists(Seconds, min_size=64, max_size=200))
def test_a_percentile_is_a_sample_that_its_share_is_not_above(values: list[float]) -> None:
    found = percentile(values, 0.9)
    assert found in values
    assert np.mean([value <= found for value in values]) >= 0.9
    assert np.mean([value < found for value in values]) < 0.9


@given(
    st.lists(Seconds, min_size=1, max_size=20),
    st.lists(st.floats(0.2, 5), min_size=20, max_size=20),
    st.floats(0.1, 10),
)
def test_what_slows_a_whole_round_is_not_in_the_ratio(base: list[float], drift: list[float], factor: float) -> None:
    one = [value * slow for value, slow in zip(base, drift, strict=False)]
    other = [value / factor for value in one]
    found = ratio(one, other, seed=0)
    assert all(math.isclose(value, factor, rel_tol=1e-9) for value in (found.value, found.low, found.high))


def test_an_interval_holds_the_median_and_narrows_with_more_rounds() -> None:
    rng = np.random.default_rng(0)
    few, many = (median(rng.lognormal(0, 0.1, count), seed=1) for count in (7, 700))
    assert few.low <= few.value <= few.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_disagreeing_rounds_are_warned_about() -> None:
    assert spread([1.0]) == spread([2.0, 2.0, 2.0]) == 0
    assert steadiness({}) == steadiness({"a": 0.01, "b": 0.04}) == []
    (alone,) = steadiness({"a": 0.01, "b": 0.01, "c": 0.5})
    assert alone.startswith("c: rounds differ by 50%")
    assert "is the machine idle?" in steadiness({"a": 0.1, "b": 0.1})[-1]
