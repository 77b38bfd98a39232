"""Figures as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.formatting import NONE, duration, interval, number, percent
from lora_ft.bench.report import Interval


@given(st.floats(1e-6, 1e9))
def test_number_keeps_three_significant_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_numbers() -> None:
    shown = [number(v) for v in (0, 0.0123, 0.9996, 9.996, 12.34, 999.7, 1234.6, None, math.nan, math.inf)]
    assert shown == ["0", "0.0123", "1.00", "10.0", "12.3", "1,000", "1,235", NONE, NONE, NONE]


def test_only_a_whole_share_is_100_percent() -> None:
    assert [percent(v) for v in (1.0, 0.99996, 0.5, 0.0, 1.2, None)] == ["100.0", "99.9", "50.0", "0.0", "120.0", NONE]


def test_intervals_and_durations() -> None:
    assert interval(Interval(value=1, low=-0.5, high=2), 1, "+") == "+1.0 [-0.5, +2.0]"
    assert interval(None, 1) == NONE
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 7325)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 2 min",
    ]
