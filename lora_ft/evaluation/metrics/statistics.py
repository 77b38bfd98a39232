"""Scores of rows and their uncertainty: bootstrap intervals and paired tests for any metric.

Intervals are bias-corrected and accelerated (BCa; Efron 1987, doi:10.1080/01621459.1987.10478410). Where rows are few
or their scores are skewed, they contain the true score more often than percentiles do. With many rows, both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

_CHUNK = 1 << 22  # random numbers drawn at a time, which bounds memory for any number of rows
_ROUNDING = 1e-9  # tolerance for sums of the same numbers in a different order
_TAILS = (0.025, 0.975)
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A score with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        """Return the estimate as a difference, with signs."""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Scored:
    """Scores of one metric.

    Attributes:
        rows: [rows] score of each answer by itself, 0 to 100; NaN for an answer that has none.
        parts: [rows, n] sufficient statistics. Their sums over rows determine the score of all rows.
        whole: Function from sums [n] to the score of all rows.
        how: Signature needed to reproduce the score elsewhere, or "".
        details: Further findings on each answer [rows] by name, such as the names that its source lacks.
        record: What else belongs into the file of scores, such as the prompt of a judge.
    """

    rows: np.ndarray
    parts: np.ndarray
    whole: Callable[[np.ndarray], float]
    how: str = ""
    details: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def mean(
        cls,
        rows: np.ndarray,
        how: str = "",
        details: Mapping[str, Sequence[Any]] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> Scored:
        """Return a score of all rows that is the mean of the row scores, without rows that are NaN."""
        finite = np.isfinite(rows)
        parts = np.stack([np.where(finite, rows, 0.0), finite], axis=1)

        def whole(sums: np.ndarray) -> float:
            return float(sums[0] / sums[1]) if sums[1] else np.nan

        return cls(rows, parts, whole, how, details or {}, record or {})

    @property
    def value(self) -> float:
        """Return the score of all rows."""
        return self.whole(self.parts.sum(axis=0))

    def estimate(self, *, seed: int, resamples: int) -> Estimate:
        """Return the score of all rows with its bootstrap interval."""
        return _estimate(self.parts, self.whole, seed, resamples)


@dataclass(frozen=True)
class Difference:
    """The difference between two models on the same rows.

    Attributes:
        estimate: Difference with its paired interval.
        p: Two-sided p-value of the paired randomization test: how often the difference is at least as large when the
            two answers of each row are swapped at random. For means, this is the sign-flip test.
        corrected: `p` corrected for all tests of a comparison (see `holm`).
    """

    estimate: Estimate
    p: float
    corrected: float


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number (Holm 1979), in the same order.

    Rejecting those below 0.05 rejects any true hypothesis with a probability of at most 0.05, however they depend on
    each other.
    """
    corrected, largest = [0.0] * len(values), 0.0
    for rank, at in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        corrected[at] = largest
    return corrected


def estimate(scores: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """Return the mean of row scores with its bootstrap interval."""
    return Scored.mean(scores).estimate(seed=seed, resamples=resamples)


def difference(model: Scored, baseline: Scored, *, seed: int, resamples: int) -> Estimate:
    """Return `model` minus `baseline` with the paired interval. Both are scored on the same resamples."""
    first = model.parts.shape[1]
    return _estimate(
        np.hstack([model.parts, baseline.parts]),
        lambda sums: model.whole(sums[:first]) - baseline.whole(sums[first:]),
        seed,
        resamples,
    )


def compare(model: Scored, baseline: Scored, *, seed: int, resamples: int) -> Difference:
    """Return `model` minus `baseline` with the paired interval, and the p-value of `resamples` random swaps."""
    estimated = difference(model, baseline, seed=seed, resamples=resamples)
    change = model.parts - baseline.parts
    model_sums, baseline_sums = model.parts.sum(axis=0), baseline.parts.sum(axis=0)
    rng = np.random.default_rng(seed)
    extreme = swaps = 0
    for size in _chunks(resamples, len(change)):
        moved = rng.integers(2, size=(size, len(change))).astype(np.float64) @ change
        differences = [model.whole(model_sums - sums) - baseline.whole(baseline_sums + sums) for sums in moved]
        extreme += sum(abs(value) >= abs(estimated.mean) - _ROUNDING for value in differences)
        swaps += size
    p = (extreme + 1) / (swaps + 1)
    return Difference(estimated, p, p)


def _resampled(parts: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield the sums [n] of each resample."""
    rng, rows = np.random.default_rng(seed), len(parts)
    for size in _chunks(resamples, rows):
        for indices in rng.integers(rows, size=(size, rows)):
            yield np.bincount(indices, minlength=rows) @ parts


def _chunks(count: int, rows: int) -> Iterator[int]:
    step = max(1, _CHUNK // rows)
    for start in range(0, count, step):
        yield min(step, count - start)


def _estimate(parts: np.ndarray, whole: Callable[[np.ndarray], float], seed: int, resamples: int) -> Estimate:
    """Return `whole` of the sums of `parts` [rows, n], with its interval."""
    sums = parts.sum(axis=0)
    value = whole(sums)
    resampled = np.array([whole(drawn) for drawn in _resampled(parts, seed, resamples)])
    resampled = resampled[np.isfinite(resampled)]  # a resample may have no row with a score
    tails = _bca_tails(value, resampled, [whole(sums - row) for row in parts]) if len(parts) > 1 else _TAILS
    low, high = np.quantile(resampled, tails)
    return Estimate(float(value), float(low), float(high))


def _bca_tails(value: float, resampled: np.ndarray, left_out: Sequence[float]) -> tuple[float, float]:
    """Return the quantiles of `resampled` that bound the interval.

    Args:
        value: Score of all rows.
        resampled: [resamples] scores.
        left_out: Scores without one row each, up to a common factor; NaN if no other row has a score.
    """
    below = np.mean(resampled < value - _ROUNDING) + np.mean(np.abs(resampled - value) <= _ROUNDING) / 2
    changed = np.array(left_out)
    changed = changed[np.isfinite(changed)]
    change = np.mean(changed) - changed if len(changed) else changed
    spread = float(np.sum(change**2))
    if not 0 < below < 1 or spread <= _ROUNDING**2:  # nothing to correct by, since all scores are equal
        return _TAILS
    bias = _NORMAL.inv_cdf(float(below))
    acceleration = float(np.sum(change**3)) / (6 * spread**1.5)
    low, high = (bias + _NORMAL.inv_cdf(tail) for tail in _TAILS)
    return _corrected(bias, acceleration, low), _corrected(bias, acceleration, high)


def _corrected(bias: float, acceleration: float, z: float) -> float:
    return _NORMAL.cdf(bias + z / (1 - acceleration * z))
