"""Axes of charts: their bounds, the position of a value, and round numbers as ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_TICKS = 5
_STEPS = (1, 2, 2.5, 5, 10)
_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7))
_FAR = 1e99  # beyond it, differences and quotients of floats overflow


@dataclass(frozen=True)
class Scale:
    """A map of the values from `low` to `high` onto the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, in pixels."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return two to eight round numbers between two values."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for mantissas in _MANTISSAS:
            values = [m * 10.0**e for e in decades for m in mantissas if low <= m * 10.0**e <= high]
            if len(values) >= 4:
                return values[:: math.ceil(len(values) / 8)]
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in _STEPS if m * power >= raw * (1 - 1e-9)), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def bounds(values: Iterable[float], log: bool = False) -> tuple[float, float]:
    """Return the ends of an axis for these values, with a small margin. It ends at 0 unless a value is negative."""
    finite = [value for value in values if drawable(value, log)] or [1.0]
    low, high = (math.log10(v) if log else v for v in (min(finite), max(finite)))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 if log else abs(high) / 10 or 1.0
    else:
        margin = 0.06 * (high - low)
    if log:
        return 10.0 ** (low - margin), 10.0 ** (high + margin)
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def drawable(value: float, log: bool = False) -> bool:
    """Return whether a value has a position on an axis."""
    return (1 / _FAR if log else -_FAR) < value < _FAR


def number(value: float) -> str:
    """Return the text of a tick."""
    return f"{value:,.10g}" if 1e-4 <= abs(value) < 1e9 or not value else f"{value:.3g}"
