"""Goodput under a limit of latency, and the search for the knee.

A fixed limit in seconds would be easy for short answers and impossible for long ones. So the limit of a request is a
multiple of its own time on the idle server. A server holds a load if 90 % of the requests keep their limits. The knee
is the largest load that it holds. Below the knee, requests wait little; above it, the queue grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SHARE = 0.9  # of requests that keep their limit
_ASCENTS = 40  # loads that are tried above the first one
_LEAST = 0.1  # smallest load that is tried, as a share of the first; below it, only noise is left


def within(ratios: Sequence[float | None], slo: float) -> float:
    """Return the share of requests that took at most `slo` times as long as alone; None is a failed request."""
    return sum(ratio is not None and ratio <= slo for ratio in ratios) / len(ratios)


def on_grid(load: float, growth: float) -> float:
    """Return the power of `growth` next to a load. So servers of like speed are measured at the same loads."""
    return growth ** round(math.log(load, growth))


def find_knee(holds: Callable[[float], bool], start: float, growth: float, refinements: int) -> float | None:
    """Return the largest load that a server holds, or None if it holds none of the tried ones.

    Loads grow by a factor until one is too large. Bisection between the last two then refines the result.

    Args:
        holds: Offers a load, in requests per second, and returns whether the server holds it.
        start: First load.
        growth: Factor between loads, above 1.
        refinements: Number of bisections.
    """
    good, bad = None, None
    load = start
    if holds(load):
        good = load
        for _ in range(_ASCENTS):
            load *= growth
            if not holds(load):
                bad = load
                break
            good = load
    else:
        bad = load
        while good is None and load / growth >= _LEAST * start:
            load /= growth
            if holds(load):
                good = load
            else:
                bad = load
    for _ in range(refinements):
        if good is None or bad is None:
            break
        load = (good * bad) ** 0.5
        if holds(load):
            good = load
        else:
            bad = load
    return good
