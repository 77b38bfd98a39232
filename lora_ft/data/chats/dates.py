"""Dates of text exports, written in the locale of the exporting machine.

Exports rarely state the order of day and month. An order is accepted only if it is the only one in which all dates of
the file exist and none goes back. Otherwise the file is refused, because a wrong order would move messages by months.
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
    """Return the number of an English month from its name or the first three letters, or None for another word."""
    short = name[:3].lower()
    return _MONTHS.index(short) + 1 if short in _MONTHS else None


def hour_of(hour: int, half: str) -> int | None:
    """Return the hour of the day (0..23), or None if there is no such hour.

    Args:
        hour: Hour as written.
        half: "a" or "p" on a 12-hour clock, "" on a 24-hour clock.
    """
    if half:
        return hour % 12 + (12 if half == "p" else 0) if 1 <= hour <= 12 else None
    return hour if hour <= 23 else None


def split_date(text: str) -> tuple[Parts, float] | None:
    """Return the three parts of a date as written, and the time of day in seconds. Return None for other text."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    hour = hour_of(int(match[4]), (match[7] or "").lower())
    minute, second = int(match[5]), int(match[6] or 0)
    if hour is None or minute > 59 or second > 59:
        return None
    return (match[1], match[2], match[3]), float(3600 * hour + 60 * minute + second)


def day_of(parts: Parts, order: str) -> datetime.date | None:
    """Return the date of three parts in an order such as "dmy", or None if there is no such day."""
    named = dict(zip(order, parts, strict=True))
    month = int(named["m"]) if named["m"].isdecimal() else month_of(named["m"])
    lengths = (4,) if order == "ymd" else (2, 4)  # a year of two digits never comes first
    if month is None or len(named["y"]) not in lengths or not named["d"].isdecimal() or len(named["d"]) > 2:
        return None
    if not named["y"].isdecimal():
        return None
    year = int(named["y"]) + (2000 if len(named["y"]) == 2 else 0)
    try:
        return datetime.date(year - 543 if 2552 <= year < 2643 else year, month, int(named["d"]))  # Buddhist calendar
    except ValueError:
        return None


def order_of(dates: Iterable[tuple[Parts, bool]], where: object, remedy: str) -> str:
    """Return the only order in which all dates exist and none goes back.

    Args:
        dates: Parts of each date, and a flag for the form of American English (9:00 AM, slashes).
        where: Name of the file, for errors.
        remedy: Remedy for errors about an unknown order.

    Raises:
        UsageError: Several orders are possible, or none.
    """
    days: dict[str, list[datetime.date]] = {}
    distinct: list[Parts] = []
    american = False
    last: Parts | None = None
    for parts, is_american in dates:
        american = american or is_american
        if parts != last:
            distinct.append(parts)
            last = parts
    for order in _ORDERS:
        candidates = [day_of(parts, order) for parts in distinct]
        valid = [day for day in candidates if day is not None]
        if len(valid) == len(candidates) and valid == sorted(valid):
            days[order] = valid
    if american and "mdy" in days:
        return "mdy"
    if len({tuple(sequence) for sequence in days.values()}) == 1:
        return next(iter(days))
    example = "/".join(distinct[0]) if distinct else ""
    if not days:
        raise UsageError(f"{where} has dates that fit no order of day and month (got {example})", remedy)
    raise UsageError(f"{where} has dates that may be day first or month first (got {example})", remedy)
