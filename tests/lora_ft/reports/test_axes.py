"""Axes contain all values, keep their order, and have a few round ticks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lora_ft.reports.axes import Scale, bounds, drawable, number, ticks

finite = st.floats(-1e12, 1e12, allow_subnormal=False)
lists = st.lists(finite, min_size=1, max_size=20)


@given(lists, st.booleans())
@example([0.0], False)
@example([1e12, 1e12], False)
def test_bounds_contain_all_values_and_differ(values: list[float], log: bool) -> None:
    values = [abs(value) + 1e-9 for value in values] if log else values
    low, high = bounds(values, log)
    assert low <= min(values) and max(values) <= high and low < high
    if min(values) >= 0:
        assert low >= 0
    assert not log or low > 0


def test_bounds_ignore_values_without_a_position() -> None:
    assert bounds([math.nan, math.inf, 2.0, 4.0]) == pytest.approx((1.88, 4.12))
    assert bounds([0.0, -3.0, 1.0, 10.0], log=True) == bounds([1.0, 10.0], log=True)
    assert bounds([]) == bounds([1.0])


@given(lists, st.booleans())
def test_ticks_are_few_round_numbers_within_the_bounds(values: list[float], log: bool) -> None:
    values = [abs(value) + 1e-9 for value in values] if log else values
    low, high = bounds(values, log)
    assume(high - low > 1e-6 * max(abs(low), abs(high)))
    values_of_ticks = ticks(low, high, log)
    assert 2 <= len(values_of_ticks) <= 8
    assert all(a < b for a, b in pairwise(values_of_ticks))
    slack = 1e-6 * (high - low)
    assert low - slack <= values_of_ticks[0] and values_of_ticks[-1] <= high + slack
    step = min(b - a for a, b in pairwise(values_of_ticks))
    finest = 10 ** math.floor(math.log10(step) - 1)
    for tick in values_of_ticks:  # one digit, or no digit finer than the distance to the next tick
        assert tick == pytest.approx(float(f"{tick:.0e}")) or tick == pytest.approx(round(tick / finest) * finest)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (410, 1460, False, [500, 750, 1000, 1250]),
        (0.9, 1100, True, [1, 10, 100, 1000]),
        (90, 3300, True, [100, 300, 1000, 3000]),
        (190, 2100, True, [200, 500, 1000, 2000]),
        (100, 130, True, [100, 110, 120, 130]),
    ],
)
def test_typical_ticks(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert ticks(low, high, log) == pytest.approx(expected)


@given(finite, finite, finite, st.booleans())
def test_scale_keeps_order_and_ends(first: float, second: float, between: float, log: bool) -> None:
    if log:
        first, second, between = (abs(value) + 1e-9 for value in (first, second, between))
    low, middle, high = sorted([first, second, between])
    assume(high - low > 1e-6 * max(abs(low), abs(high)))
    scale = Scale(low, high, 400.0, 10.0, log)
    assert scale(low) == pytest.approx(400) and scale(high) == pytest.approx(10)
    assert 10 - 1e-6 <= scale(middle) <= 400 + 1e-6


def test_numbers() -> None:
    assert [number(v) for v in (0, 0.1 + 0.2, 1000, 2.5e6, 1e-7, -3)] == [
        "0",
        "0.3",
        "1,000",
        "2,500,000",
        "1e-07",
        "-3",
    ]
    assert not drawable(math.nan) and not drawable(0.0, log=True) and not drawable(1e300) and drawable(0.0)
