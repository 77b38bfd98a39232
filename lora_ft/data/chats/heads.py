"""Heads of WhatsApp's messages: `12/31/23, 10:15 PM - ` on Android, `[31.12.23, 22:15:30] ` on iOS, and variants.

A phone formats dates and times for its language, region and clock, and an export states none of these. Yet all heads
of one export share a *shape*: brackets, separators, order of date and time, and presence of a word next to the time.
One order of day, month and year also explains all of them. So a file is surveyed before it is read. Its first head
sets the shape. An unreadable line of this shape is an error, because it would otherwise be appended to the message
before it. A head of another shape is pasted text.
"""

from __future__ import annotations

import datetime
import functools
import re
import unicodedata
from dataclasses import dataclass, field
from typing import NamedTuple

from lora_ft.data.chats.clock import hour_of_day, plain

_FIRST_DAY = datetime.date(1970, 1, 1).toordinal()
ORDERS = ("dmy", "mdy", "ymd")
_ENOUGH = 20  # messages; among 20, some are sent after noon or at night
_SPARSE = 20  # minimum factor by which a wrong order of dates stretches a chat
_WINDOWS = (64, 160)  # maximum characters of a head; further ones are ignored to bound the time per line
_MARKED = frozenset("\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Accepts digits of every script and every blank, and drops marks.
_PLAIN: dict[int, str | None] = {
    **{code: str(unicodedata.decimal(chr(code))) for code in range(0x80, 0x11000) if chr(code).isdecimal()},
    **{code: " " for code in range(0x3001) if chr(code).isspace()},
    **{ord(letter): None for letter in _MARKED},
}
_NUMBER = re.compile(r"(\d+)")
_STARTS = re.compile(f"[{''.join(_MARKED)}]*(\\[[{''.join(_MARKED)}]*)?\\d")  # \d is a digit of any script

_BETWEEN = r" ?[./\-‐‑–−年月년월] ?"
_DATE = rf"(?P<date>(\d{{1,4}})({_BETWEEN})(\d{{1,2}})({_BETWEEN})(\d{{1,4}}))(?!\d)"
_TIME = (
    r"(?P<hour>\d{1,2}) ?(?P<colon>[:：∶.٫h點点時时시]) ?(?P<minute>\d{2})"
    r"(?: ?(?:[:：∶.٫]|min|分|분) ?(?P<second>\d{2})(?: ?[s秒초]\b)?)?(?!\d)"
)
_FORMS = tuple(
    re.compile(rf"(?P<bracket>\[ ?)?{form}(?(bracket) ?\](?: |$)?|(?: [-–—](?: |$)|(?P<colons>:(?: |$))))")
    for form in (
        rf"{_DATE}(?P<before>[^\d\[\]]{{1,40}}?){_TIME}(?P<after>[^\d\[\]:]{{0,40}}?)",
        rf"{_TIME}(?P<after>[^\d\[\]]{{1,40}}?){_DATE}(?P<before>[^\d\[\]:]{{0,12}}?)",
    )
)
_WORD = re.compile(r"[^\s,،;()·日일號号-][^\s,،;()日일號号]*")
# Words next to a time that name no part of a day: "klo" and "à" before it, "Uhr" after it.
_LITERALS = {
    "before": re.compile("[гржaàouовуyж]|às|las|la|ao|um|om|at|on|об|klo?|klokken|klukkan|ob|saat|ساعت|lúc"),
    "after": re.compile("[гчนh]|uhr|ին"),
}


class Shape(NamedTuple):
    """Shape of a head, common to all heads of one export."""

    bracket: bool
    colons: bool
    time_first: bool
    separators: str
    colon: str
    seconds: bool
    words: tuple[bool, bool]  # before the time, after it
    dotted: bool  # 23. 11. 20.


class Head(NamedTuple):
    """Head of a message as written.

    Attributes:
        shape: Shape common to all heads of the export.
        date: Three numbers, in the order of the export.
        clock: Hour, minute and second as written.
        word: Part of the day next to the time, as `clock.plain` returns it, or "".
        end: Length of the head, in characters of the line.
    """

    shape: Shape
    date: tuple[str, str, str]
    clock: tuple[int, int, int]
    word: str
    end: int


def find_head(line: str) -> Head | None:
    """Return the head at the beginning of a line, of any shape, or None if there is none."""
    if not _STARTS.match(line):
        return None
    for window in (line[:length] for length in _WINDOWS):
        text = window.translate(_PLAIN)
        for time_first, form in enumerate(_FORMS):
            match = form.match(text)
            if match is not None and (match.end() < len(text) or len(window) == len(line)):
                return _head(match, bool(time_first), window)
        if len(window) == len(line):
            break
    return None


def _head(match: re.Match[str], time_first: bool, window: str) -> Head:
    words, word = _words(match["before"], match["after"])
    numbers = _NUMBER.split(match["date"])
    shape = Shape(
        match["bracket"] is not None,
        match["colons"] is not None,
        time_first,
        "".join(numbers[2::2]).replace(" ", ""),
        match["colon"],
        match["second"] is not None,
        words,
        ". " in match["date"] and match["before"].startswith("."),
    )
    clock = (int(match["hour"]), int(match["minute"]), int(match["second"] or 0))
    return Head(shape, (numbers[1], numbers[3], numbers[5]), clock, word, _end(match.end(), window))


@functools.lru_cache(maxsize=1024)
def _words(before: str, after: str) -> tuple[tuple[bool, bool], str]:
    """Return two flags for words before and after a time, and the word that may be a part of the day."""
    sides = [(_WORD.findall(text), _LITERALS[side]) for side, text in (("before", before), ("after", after))]
    named = [word for words, literals in sides for word in words if not literals.fullmatch(plain(word))]
    return (bool(sides[0][0]), bool(sides[1][0])), plain("".join(named))


def _end(end: int, window: str) -> int:
    """Return the offset in `window`, which has marks, of the end of the first `end` characters without marks."""
    for at, letter in enumerate(window):
        if end == 0:
            return at
        end -= letter not in _MARKED
    return len(window)


@dataclass
class _Fit:
    """Faults and span of a file's dates when read in one order."""

    impossible: int = 0
    backward: int = 0
    days: list[int] = field(default_factory=list)  # the first and the last

    def add(self, day: int | None) -> None:
        if day is None:
            self.impossible += 1
            return
        self.backward += bool(self.days) and day < self.days[1]
        self.days = [self.days[0] if self.days else day, day]

    @property
    def faults(self) -> tuple[int, int]:
        """Number of impossible dates, then number of steps back."""
        return self.impossible, self.backward

    @property
    def span(self) -> int:
        """Number of days from the first date to the last."""
        return self.days[1] - self.days[0] if self.days else 0


class Survey:
    """Survey of a file's heads, which determines how to read them.

    Attributes:
        shape: Shape of the first head, or None before one was added.
        count: Number of heads of this shape.
        others: Number of heads of other shapes.
    """

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.count = 0
        self.others = 0
        self._fits = {order: _Fit() for order in ORDERS}
        self._literals: set[str] = set()
        self._words: set[str] = set()
        self._american = False
        self._last: tuple[tuple[str, str, str], int] | None = None
        self._hours = set[int]()
        self._restarts = 0

    def add(self, head: Head, line: str) -> None:
        """Add a head of the file to the survey. Heads of a shape other than the first are left out."""
        self.shape = self.shape or head.shape
        if head.shape != self.shape:
            self.others += not head.shape.colons
            return
        self.count += 1
        date, hour = head.date, head.clock[0]
        self._restarts += self._last is not None and self._last[0] == date and self._last[1] - 1 > hour
        self._last = date, hour
        self._hours.add(hour)
        for order, fit in self._fits.items():
            fit.add(day_of(head.date, order))
        if head.word:
            self._words.add(head.word)
            self._american = self._american or (
                head.word in ("am", "pm") and line[: head.end].upper() == line[: head.end]
            )
            if head.clock[0] > 12 and hour_of_day(head.clock[0], head.word) is None:
                self._literals.add(head.word)  # next to hours from 13 on, only known words name a part of the day

    @property
    def lacks_words(self) -> bool:
        """True for a 12-hour clock without words for morning and evening, as in some Spanish exports of iOS."""
        return self._is_wordless and self._restarts > 0 and self.count >= _ENOUGH

    @property
    def half_is_unknown(self) -> bool:
        """True for a possible 12-hour clock without words: hours restart in a day, or no hour of many exceeds 12."""
        return self._is_wordless and (self._restarts > 0 or self.count >= _ENOUGH)

    @property
    def _is_wordless(self) -> bool:
        return not self._words - self._literals and self._hours <= set(range(1, 13))

    @property
    def has_dates(self) -> bool:
        """True if any head has a date in any order."""
        return any(fit.days for fit in self._fits.values())

    @functools.cached_property
    def order(self) -> str:
        """Most likely order of day, month and year.

        Dates must be possible and run forward. If several orders fit equally, the year comes first only in a Chinese,
        Japanese or Korean export. Of the remaining orders, the one with the shortest chat wins, since chats are dense.
        A tie is decided for American dates if AM and PM are written in capitals, else for day before month.
        """
        likely = [order for order in (("mdy", "dmy", "ymd") if self._american else ORDERS) if self._has(order)]
        return min(likely, key=self._badness)

    @property
    def is_ambiguous(self) -> bool:
        """True if another order fits the dates equally well, so that `order` was chosen by convention."""
        best = self._badness(self.order)[:3]
        days = self._fits[self.order].days
        return any(
            self._has(order) and self._badness(order)[:3] == best and fit.days != days
            for order, fit in self._fits.items()
        )

    def time_of(self, head: Head) -> float | None:
        """Return the time of a head in seconds since 1970 on the export's own clock, or None if it is invalid."""
        day = day_of(head.date, self.order)
        hour = hour_of_day(head.clock[0], "" if head.word in self._literals else head.word)
        return None if day is None or hour is None else _seconds(day, hour, *head.clock[1:])

    def _has(self, order: str) -> bool:
        """Return whether any language writes dates in this order with the file's separators."""
        assert self.shape is not None
        return order != "mdy" or self.shape.separators == "//"

    def _badness(self, order: str) -> tuple[int, int, bool, int]:
        fit = self._fits[order]
        return *fit.faults, (order == "ymd") != self._year_first, fit.span

    @functools.cached_property
    def _year_first(self) -> bool:
        """True if a year of two digits may come first: in Korean dates, with Chinese words, or in far denser chats."""
        assert self.shape is not None
        letters = "".join(self._words)
        if self.shape.dotted or any(unicodedata.name(letter, "").startswith(("CJK", "HANGUL")) for letter in letters):
            return True
        first = self._fits["ymd"]
        return all(
            _SPARSE * first.span < fit.span
            for order, fit in self._fits.items()
            if order != "ymd"
            and self._has(order)
            and (fit.impossible, fit.backward) <= (first.impossible, first.backward)
        )


def _is_latin(text: str) -> bool:
    return not any(letter.isdecimal() and not letter.isascii() for letter in text)


def earliest(head: Head) -> float | None:
    """Return the earliest possible time of a head of any shape in seconds, or None if it has no valid time."""
    days = [day for day in (day_of(head.date, order) for order in ORDERS) if day is not None]
    hour = hour_of_day(head.clock[0], head.word)
    times = [_seconds(day, head.clock[0] if hour is None else hour, *head.clock[1:]) for day in days]
    return min((time for time in times if time is not None), default=None)


@functools.lru_cache(maxsize=4096)
def day_of(date: tuple[str, str, str], order: str) -> int | None:
    """Return the proleptic ordinal of a date in days, or None if it cannot be a date of WhatsApp in that order.

    Years have two or four digits. Years of the Buddhist calendar (Thai phones) are 543 ahead.
    """
    named = dict(zip(order, date, strict=True))
    if len(named["y"]) not in (2, 4) or max(len(named["d"]), len(named["m"])) > 2:
        return None
    year = int(named["y"])
    if len(named["y"]) == 2:
        year += 2000 if 9 <= year < 52 else 1957 if year >= 52 else 0
    elif 2552 <= year < 2643:
        year -= 543
    if not 1970 <= year < 2100:
        return None
    try:
        return datetime.date(year, int(named["m"]), int(named["d"])).toordinal()
    except ValueError:
        return None


def _seconds(day: int, hour: int, minute: int, second: int) -> float | None:
    if hour > 23 or minute > 59 or second > 59:
        return None
    return float((day - _FIRST_DAY) * 86400 + hour * 3600 + minute * 60 + second)
