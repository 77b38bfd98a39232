"""Scores of rows and their uncertainty: bootstrap intervals and paired tests for any metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22  # numbers drawn at a time, to bound memory for any number of rows
_ROUNDING = 1e-9  # tolerance for sums of the same numbers in another order


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
        rows: [rows] score of each answer by itself, 0 to 100.
        parts: [rows, n] sufficient statistics. Their sums over rows determine the score of all rows.
        whole: Function from sums [n] to the score of all rows.
        how: Signature needed to reproduce the score elsewhere, or "".
    """

    rows: np.ndarray
    parts: np.ndarray
    whole: Callable[[np.ndarray], float]
    how: str = ""

    @classmethod
    def mean(cls, rows: np.ndarray, how: str = "") -> Scored:
        """Return a score of all rows that is the mean of the row scores."""
        return cls(rows, rows[:, None], lambda sums: float(sums[0]) / len(rows), how)

    @property
    def value(self) -> float:
        """Return the score of all rows."""
        return self.whole(self.parts.sum(axis=0))

    def estimate(self, *, seed: int, resamples: int) -> Estimate:
        """Return the score of all rows with its bootstrap percentile interval."""
        drawn = [self.whole(sums) for sums in _resampled(self.parts, seed, resamples)]
        return _interval(self.value, drawn)


@dataclass(frozen=True)
class Difference:
    """The difference of two models on the same rows.

    Attributes:
        estimate: Difference with its paired interval.
        p: Two-sided p-value of the paired randomization test. It is the frequency of differences at least as large if
            each row's two answers are swapped at random. For means, it is the sign-flip test.
    """

    estimate: Estimate
    p: float


def estimate(scores: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """Return the mean of row scores with its bootstrap percentile interval."""
    return Scored.mean(scores).estimate(seed=seed, resamples=resamples)


def difference(model: Scored, other: Scored, *, seed: int, resamples: int) -> Estimate:
    """Return `model` minus `other` with the paired interval. Both are scored on the same resamples."""
    drawn = [
        model.whole(sums[: model.parts.shape[1]]) - other.whole(sums[model.parts.shape[1] :])
        for sums in _resampled(np.hstack([model.parts, other.parts]), seed, resamples)
    ]
    return _interval(model.value - other.value, drawn)


def compare(model: Scored, other: Scored, *, seed: int, resamples: int) -> Difference:
    """Return `model` minus `other` with the paired interval, and the p-value of `resamples` random swaps."""
    found = difference(model, other, seed=seed, resamples=resamples)
    change = model.parts - other.parts
    ours, theirs = model.parts.sum(axis=0), other.parts.sum(axis=0)
    rng = np.random.default_rng(seed)
    extreme = tried = 0
    for size in _chunks(resamples, len(change)):
        moved = rng.integers(2, size=(size, len(change))).astype(np.float64) @ change
        swapped = [model.whole(ours - sums) - other.whole(theirs + sums) for sums in moved]
        extreme += sum(abs(value) >= abs(found.mean) - _ROUNDING for value in swapped)
        tried += size
    return Difference(found, (extreme + 1) / (tried + 1))


def _resampled(parts: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield the sums [n] of each resample."""
    rng, rows = np.random.default_rng(seed), len(parts)
    for size in _chunks(resamples, rows):
        for drawn in rng.integers(rows, size=(size, rows)):
            yield np.bincount(drawn, minlength=rows) @ parts


def _chunks(count: int, rows: int) -> Iterator[int]:
    step = max(1, _CHUNK // rows)
    for start in range(0, count, step):
        yield min(step, count - start)


def _interval(value: float, drawn: list[float]) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
