"""The share of good requests, and the search for the knee on servers with a known limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.slo import find_knee, on_grid, within


def test_failed_and_late_requests_are_not_within_the_limit() -> None:
    assert within([1.0, 3.0, 3.01, None], 3.0) == 0.5


@given(st.floats(0.2, 1000), st.floats(1.05, 3), st.integers(0, 6))
def test_the_knee_is_below_the_limit_of_the_server_by_at_most_one_step(
    limit: float, growth: float, refinements: int
) -> None:
    tried: list[float] = []

    def holds(load: float) -> bool:
        tried.append(load)
        return load <= limit

    knee = find_knee(holds, 1.0, growth, refinements)
    assert knee is not None and knee in tried
    assert knee <= limit
    if limit < growth**40:
        assert limit < knee * growth ** (0.5**refinements) * (1 + 1e-9)


def test_a_server_that_holds_nothing_has_no_knee() -> None:
    tried: list[float] = []
    assert find_knee(lambda load: bool(tried.append(load)), 8.0, 2.0, 3) is None
    assert tried == [8.0, 4.0, 2.0, 1.0]


def test_a_server_that_holds_everything_ends_the_search() -> None:
    assert find_knee(lambda load: True, 1.0, 2.0, 5) == pytest.approx(2.0**40)


@given(st.floats(0.01, 100), st.floats(1.05, 3))
def test_the_grid_has_a_load_near_any_other(load: float, growth: float) -> None:
    near = on_grid(load, growth)
    assert 1 / growth**0.51 <= near / load <= growth**0.51
    assert on_grid(near * 1.001, growth) == pytest.approx(near)
