"""Scores of rows and their uncertainty: bootstrap intervals and paired tests for any metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22  # random numbers drawn at a time, which bounds memory for any number of rows
_ROUNDING = 1e-9  # tolerance for sums of the same numbers in a different order


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
        values = [self.whole(sums) for sums in _resampled(self.parts, seed, resamples)]
        return _interval(self.value, values)


@dataclass(frozen=True)
class Difference:
    """The difference between two models on the same rows.

    Attributes:
        estimate: Difference with its paired interval.
        p: Two-sided p-value of the paired randomization test: how often the difference is at least as large when the
            two answers of each row are swapped at random. For means, this is the sign-flip test.
    """

    estimate: Estimate
    p: float


def estimate(scores: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """Return the mean of row scores with its bootstrap percentile interval."""
    return Scored.mean(scores).estimate(seed=seed, resamples=resamples)


def difference(model: Scored, baseline: Scored, *, seed: int, resamples: int) -> Estimate:
    """Return `model` minus `baseline` with the paired interval. Both are scored on the same resamples."""
    values = [
        model.whole(sums[: model.parts.shape[1]]) - baseline.whole(sums[model.parts.shape[1] :])
        for sums in _resampled(np.hstack([model.parts, baseline.parts]), seed, resamples)
    ]
    return _interval(model.value - baseline.value, values)


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
    return Difference(estimated, (extreme + 1) / (swaps + 1))


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


def _interval(value: float, resampled: list[float]) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
