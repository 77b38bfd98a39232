"""Dates of text exports, written by the locale of the machine that exported them.

The order of day and month is seldom written down. It is taken only where the whole file leaves one order possible: all
dates exist in it and none goes back. Otherwise the file is refused, as a wrong order would move messages by months.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

from lora_ft.core.errors import UsageError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(
    r"(\d{1,4})[-./ ]{1,2}(\d{1,2}|[A-Za-z]{3,9})[-./ ]{1,2}(\d{1,4})\.?,? +(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?"
    r"(?:[ \u00a0\u202f]?([AaPp])\.?[Mm]\.?)?"
)
_ORDERS = ("dmy", "mdy", "ymd")

Parts = tuple[str, str, str]


def month_of(name: str) -> int | None:
    """Return the number of an English month, by its name or the first three letters of it; None for another word."""
    short = name[:3].lower()
    return _MONTHS.index(short) + 1 if short in _MONTHS else None


def hour_of(hour: int, half: str) -> int | None:
    """Return the hour of 24; None where there is no such hour.

    Args:
        hour: as written.
        half: "a" or "p" where the clock has 12 hours, else "".
    """
    if half:
        return hour % 12 + (12 if half == "p" else 0) if 1 <= hour <= 12 else None
    return hour if hour <= 23 else None


def split_date(text: str) -> tuple[Parts, float] | None:
    """Return the three parts of a date, in their order, and the seconds of its time of day; None for other text."""
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return None
    hour = hour_of(int(found[4]), (found[7] or "").lower())
    minute, second = int(found[5]), int(found[6] or 0)
    if hour is None or minute > 59 or second > 59:
        return None
    return (found[1], found[2], found[3]), float(3600 * hour + 60 * minute + second)


def day_of(parts: Parts, order: str) -> datetime.date | None:
    """Return the day of three parts in an order such as "dmy"; None where there is no such day."""
    named = dict(zip(order, parts, strict=True))
    month = int(named["m"]) if named["m"].isdecimal() else month_of(named["m"])
    lengths = (4,) if order == "ymd" else (2, 4)  # nobody writes two digits of a year first
    if month is None or len(named["y"]) not in lengths or not named["d"].isdecimal() or len(named["d"]) > 2:
        return None
    if not named["y"].isdecimal():
        return None
    try:
        return datetime.date(int(named["y"]) + (2000 if len(named["y"]) == 2 else 0), month, int(named["d"]))
    except ValueError:
        return None


def order_of(dates: Iterable[tuple[Parts, bool]], where: object, remedy: str) -> str:
    """Return the one order in which dates exist and do not go back.

    Args:
        dates: parts of each date, and whether it is written as only American English writes it (9:00 AM, slashes).
        where: name of the file, for errors.
        remedy: what to do where the order cannot be told.

    Raises:
        UsageError: several orders are possible, or none.
    """
    days: dict[str, list[datetime.date]] = {}
    seen: list[Parts] = []
    american = False
    last: Parts | None = None
    for parts, is_american in dates:
        american = american or is_american
        if parts != last:
            seen.append(parts)
            last = parts
    for order in _ORDERS:
        found = [day_of(parts, order) for parts in seen]
        whole = [day for day in found if day is not None]
        if len(whole) == len(found) and whole == sorted(whole):
            days[order] = whole
    if american and "mdy" in days:
        return "mdy"
    if len({tuple(kept) for kept in days.values()}) == 1:
        return next(iter(days))
    example = "/".join(seen[0]) if seen else ""
    if not days:
        raise UsageError(f"{where} has dates that fit no order of day and month (first: {example})", remedy)
    raise UsageError(f"{where} has dates that may be day or month first (first: {example})", remedy)
