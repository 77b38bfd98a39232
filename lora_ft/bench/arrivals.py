"""Arrival times of requests in an open loop, in which clients do not wait for each other's answers."""

from __future__ import annotations

from typing import Literal

import numpy as np

Profile = Literal["poisson", "bursts"]
SHAPES: dict[Profile, float] = {"poisson": 1.0, "bursts": 0.25}
"""Shape of the gamma distribution of gaps. 1 is a Poisson process. With 0.25, the gaps' standard deviation is twice
their mean, so that requests come in bursts."""


def arrivals(rate: float, count: int, profile: Profile, seed: int) -> list[float]:
    """Return the times at which requests arrive, in seconds, in ascending order.

    The same seed returns the same times in units of the mean gap. So loads differ in their rate only.

    Args:
        rate: Requests per second.
        count: Number of requests.
        profile: Distribution of the gaps between requests.
        seed: Seed of the gaps.
    """
    shape = SHAPES[profile]
    gaps = np.random.default_rng(seed).gamma(shape, 1 / shape, count)
    return (np.cumsum(gaps) / rate).tolist()
