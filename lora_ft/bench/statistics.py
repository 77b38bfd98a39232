"""Statistics of timings: percentiles with enough samples, ratios within rounds, spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from lora_ft.bench.report import Interval, Percentiles

_CONFIDENCE = 0.99
_RESAMPLES = 2000
_NOISY, _WILD = 0.05, 0.25


def needed(share: float) -> int:
    """Return the number of samples that a percentile requires: 11 for 0.5, 64 for 0.9, 662 for 0.99.

    This is the early-stopping rule of MLPerf (mlcommons/inference, LoadGen). Suppose that more than 1 - share of all
    latencies exceed a bound. Then at most one of this many samples exceeds it with a probability of at most 1 %.
    """
    count = 2
    while share**count + count * (1 - share) * share ** (count - 1) > 1 - _CONFIDENCE:
        count += 1
    return count


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that a share of all values does not exceed, or None with too few samples."""
    if len(values) < needed(share):
        return None
    return sorted(values)[math.ceil(share * len(values)) - 1]


def percentiles(values: Sequence[float]) -> Percentiles:
    """Return the percentiles of a report."""
    p50, p90, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.99))
    return Percentiles(samples=len(values), p50=p50, p90=p90, p99=p99)


def ratio(baseline: Sequence[float], times: Sequence[float], seed: int) -> Interval:
    """Return the median of baseline over times, with its 95 % bootstrap interval over rounds.

    Both sequences have one value per round, so that the machine's speed in a round cancels out.
    """
    return median(np.divide(baseline, times), seed)


def median(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """Return the median with its bootstrap interval."""
    return _interval(float(np.median(values)), _medians(values, np.random.default_rng(seed)))


def unpaired(old: Sequence[float], new: Sequence[float], seed: int) -> Interval:
    """Return the new median over the old one, with the interval from resampling both with replacement.

    They were measured at different times. So rounds are not paired, and the ratio includes the machine's drift.
    """
    rng = np.random.default_rng(seed)
    before, after = _medians(old, rng), _medians(new, rng)
    return _interval(float(np.median(new) / np.median(old)), after / before)


def _medians(values: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the medians of many samples drawn with replacement."""
    array = np.asarray(values, np.float64)
    return np.median(array[rng.integers(len(array), size=(_RESAMPLES, len(array)))], axis=1)


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median; 0 for a single value."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle) if middle else 0.0


def steadiness(spreads: Mapping[str, float]) -> list[str]:
    """Return warnings about timings whose rounds disagree, from the spread of each."""
    if not spreads:
        return []
    wild = {name: value for name, value in spreads.items() if value > _WILD}
    warnings = [f"{name}: rounds differ by {value:.0%}" for name, value in wild.items()]
    usual = statistics.median(spreads.values())
    if usual > _NOISY:
        warnings.append(f"rounds differ by {usual:.0%} in the median of all timings; check that the machine is idle")
    return warnings
