"""Figures of a report as text."""

from __future__ import annotations

import math

from lora_ft.bench.report import Interval
from lora_ft.reports.table import NONE


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with at least `digits` significant digits; whole numbers keep all of theirs."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage without its sign, which the heading has. Only a whole share is 100.0."""
    if share is None:
        return NONE
    text = f"{100 * share:.1f}"
    return "99.9" if text == "100.0" and share < 1 else text


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds."""
    return NONE if seconds is None else number(1000 * seconds)


def interval(estimate: Interval | None, places: int, sign: str = "") -> str:
    """Return a value with its interval."""
    if estimate is None:
        return NONE
    value, low, high = (f"{v:{sign}.{places}f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit and the next."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"
