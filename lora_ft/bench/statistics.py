"""The statistics of timings: percentiles that enough samples stand behind, ratios within rounds, spread."""

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
    """Samples that a percentile asks for: 11 for 0.5, 64 for 0.9, 662 for 0.99.

    MLPerf's early stopping (mlcommons/inference, LoadGen): so many that, were more than 1 - share of all latencies
    above a bound, at most one of the samples would be with a probability of at most 1 %.
    """
    count = 2
    while share**count + count * (1 - share) * share ** (count - 1) > 1 - _CONFIDENCE:
        count += 1
    return count


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that a share of all are not above, or None where the samples are too few to say."""
    if len(values) < needed(share):
        return None
    return sorted(values)[math.ceil(share * len(values)) - 1]


def percentiles(values: Sequence[float]) -> Percentiles:
    """Those of a report."""
    p50, p90, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.99))
    return Percentiles(samples=len(values), p50=p50, p90=p90, p99=p99)


def ratio(base: Sequence[float], other: Sequence[float], seed: int) -> Interval:
    """Median over rounds of base over other, with the 95 % interval of medians of rounds drawn with replacement.

    Both have a value for each round; the machine's speed in a round is in both of them and falls out.
    """
    return median(np.divide(base, other), seed)


def median(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """The median with its bootstrap interval."""
    return _interval(float(np.median(values)), _medians(values, np.random.default_rng(seed)))


def unpaired(old: Sequence[float], new: Sequence[float], seed: int) -> Interval:
    """New median over old median, with the interval from values of each drawn with replacement.

    The two come from different times, so rounds are no pairs: what a drift of the machine does is in the ratio.
    """
    rng = np.random.default_rng(seed)
    before, after = _medians(old, rng), _medians(new, rng)
    return _interval(float(np.median(new) / np.median(old)), after / before)


def _medians(values: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of values drawn with replacement, many times."""
    array = np.asarray(values, np.float64)
    return np.median(array[rng.integers(len(array), size=(_RESAMPLES, len(array)))], axis=1)


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def spread(values: Sequence[float]) -> float:
    """The interquartile range over the median; 0 for a single value."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle) if middle else 0.0


def steadiness(spreads: Mapping[str, float]) -> list[str]:
    """What is wrong with the spreads of some timings, by what was timed: nothing where rounds agree."""
    if not spreads:
        return []
    wild = {name: value for name, value in spreads.items() if value > _WILD}
    found = [f"{name}: rounds differ by {value:.0%}" for name, value in wild.items()]
    usual = statistics.median(spreads.values())
    if usual > _NOISY:
        found.append(f"rounds differ by {usual:.0%} in the median of all timings: something else uses this machine")
    return found
