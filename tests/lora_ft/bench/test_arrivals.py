"""Arrivals ascend, have the rate that was asked for, and keep their shape at every rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.arrivals import Profile, arrivals

PROFILES = st.sampled_from(["poisson", "bursts"])


@given(st.floats(0.01, 1000), st.integers(1, 200), PROFILES, st.integers(0, 99))
def test_times_ascend_and_scale_with_the_rate(rate: float, count: int, profile: Profile, seed: int) -> None:
    times = arrivals(rate, count, profile, seed)
    assert len(times) == count and times == sorted(times)
    assert np.allclose(np.array(times) * rate, arrivals(1.0, count, profile, seed))


@pytest.mark.parametrize(("profile", "variation"), [("poisson", 1.0), ("bursts", 2.0)])
def test_gaps_have_the_mean_and_the_variation_of_their_profile(profile: Profile, variation: float) -> None:
    gaps = np.diff(arrivals(4.0, 100_000, profile, 0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)
