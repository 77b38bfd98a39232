"""WhatsApp's text export, of Android and iOS, in any order of day, month and year.

A message begins with `12/31/23, 10:15 PM - Name: ` (Android) or `[31.12.23, 22:15:30] Name: ` (iOS); lines without such
a head go on with the one before. The export does not say in which order its dates are; all of them together do.
"""

from __future__ import annotations

import calendar
import datetime
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import Path as ZipPath

from export.errors import LoraFtError, UsageError
from lora_ft.chats.message import Message, clean_name, clean_text
from lora_ft.chats.stream import File

_MARKS = "\ufeff\u200e\u200f\u202a\u202b\u202c"
_HEAD = re.compile(
    r"(?P<ios>\[)?(\d{1,4})[./-] ?(\d{1,2})[./-] ?(\d{1,4})\.?[,،]?\s*"
    r"(?P<before>[^\W\d]+\.?\s*)?(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?"
    r"(?:\s*(?P<after>[^\W\d]\.?\s?[^\W\d]?\.?))?(?(ios)\]\s?|\s[-–]\s)"
)
_FORENOON = ("am", "πμ", "ص", "午前", "上午", "오전")
_AFTERNOON = ("pm", "μμ", "م", "午後", "下午", "오후")
_ORDERS = ("dmy", "mdy", "ymd")
# What Android writes in place of a text. iOS marks all of its own words with U+200E.
_PLACEHOLDER = re.compile(
    r"<[^\W\d_][^<>]{2,60}>|This message was deleted\.?|You deleted this message\.?|null|Missed (voice|video) call"
)
_ATTACHED = re.compile(
    r"\A(?:(?:IMG|VID|AUD|PTT|STK|DOC)-\d+-WA\d+\.\w+ \([^()\n]+\)|[^\n]+\.\w{2,5} \(file attached\))(?:\n|\Z)"
)
_EDITED = re.compile(r"\s*<This message was edited>$")
_QUOTED = re.compile('["“”„«»]')  # of the old and new subject, in a line of WhatsApp's own

Parts = tuple[str, str, str]


def read_whatsapp(file: Path) -> Iterator[tuple[str, Message]]:
    """(chat, message) of every message with a text; the id is the number of its line.

    Args:
        file: the text, or the zip file that iOS makes of it.

    Raises:
        UsageError: no line begins a message.
        LoraFtError: the file is not UTF-8.
    """
    text = _unzipped(file)
    order = _order(text)
    chat = clean_text(file.name.removesuffix(".zip").removesuffix(".txt"))
    head, lines = None, list[str]()
    for number, line in _lines(text):
        found = _head(line, order)
        if found is None:
            lines.append(line)
            continue
        if (message := _message(head, lines)) is not None:
            yield chat, message
        head, lines = (number, *found), [line.lstrip(_MARKS)[found[2] :]]
    if (message := _message(head, lines)) is not None:
        yield chat, message


def _unzipped(file: Path) -> File:
    if not file.name.endswith(".zip"):
        return file
    texts = [entry for entry in ZipPath(str(file)).iterdir() if entry.name.endswith(".txt")]
    if len(texts) != 1:
        raise UsageError(f"{file} holds {len(texts)} text files, not the one of a WhatsApp export", "unpack it")
    return texts[0]


def _lines(file: File) -> Iterator[tuple[int, str]]:
    """(number, text) of each line; U+2028 and its like end none."""
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise LoraFtError(
                    f"{file}:{number} is not UTF-8 (byte {error.start} of the line)", "save the file as UTF-8"
                ) from error


@dataclass
class _Reading:
    """How the dates of a file fare when they are read in one order."""

    impossible: int = 0
    backward: int = 0
    days: list[int] = field(default_factory=list)  # the first and the last

    def add(self, day: int | None) -> None:
        if day is None:
            self.impossible += 1
            return
        self.backward += bool(self.days) and day < self.days[1]
        self.days = [self.days[0] if self.days else day, day]

    def badness(self, order: str) -> tuple[int, int, bool, int]:
        """An export runs forward in time, two digits of a year seldom come first, and chats are dense, not sparse."""
        return self.impossible, self.backward, order == "ymd", self.days[1] - self.days[0] if self.days else 0


def _order(file: File) -> str:
    """The order of the dates: the one in which most are possible, then run forward, then span the least."""
    readings = {order: _Reading() for order in _ORDERS}
    american = False
    for _, line in _lines(file):
        found = _HEAD.match(line.lstrip(_MARKS))
        if found is None:
            continue
        american = american or (found["after"] or "").strip() in ("AM", "PM")
        for order, reading in readings.items():
            reading.add(_day(found.group(2, 3, 4), order))
    if not any(reading.days for reading in readings.values()):
        raise UsageError(f"{file} holds no WhatsApp message", "is it the text that WhatsApp's Export chat made?")
    likely = ("mdy", "dmy", "ymd") if american else _ORDERS
    return min(likely, key=lambda order: readings[order].badness(order))


@functools.lru_cache(maxsize=1024)
def _day(parts: Parts, order: str) -> int | None:
    """A date as a count of days, or None where it is none in that order."""
    named = dict(zip(order, parts, strict=True))
    if len(named["y"]) not in (2, 4) or max(len(named["d"]), len(named["m"])) > 2:
        return None
    year = int(named["y"]) + (2000 if len(named["y"]) == 2 else 0)
    try:
        return datetime.date(year, int(named["m"]), int(named["d"])).toordinal()
    except ValueError:
        return None


def _head(line: str, order: str) -> tuple[float, bool, int] | None:
    """(time, whether of iOS, length) of the head that a line begins with, or None."""
    found = _HEAD.match(line.lstrip(_MARKS))
    if found is None:
        return None
    day = _day(found.group(2, 3, 4), order)
    hour, minute, second = int(found[6]), int(found[7]), int(found[8] or 0)
    half = [re.sub(r"[.\s]", "", found[name] or "").lower() for name in ("before", "after")]
    if any(mark in _AFTERNOON for mark in half):
        hour = hour % 12 + 12
    elif any(mark in _FORENOON for mark in half):
        hour %= 12
    if day is None or hour > 23 or minute > 59 or second > 59:
        return None
    date = datetime.date.fromordinal(day)
    time = calendar.timegm((date.year, date.month, date.day, hour, minute, second))
    return float(time), found["ios"] is not None, found.end()


def _message(head: tuple[int, float, bool, int] | None, lines: list[str]) -> Message | None:
    """The message of a head and the lines after it; None where it is WhatsApp's own, or has no text."""
    if head is None:
        return None
    number, time, ios, _ = head
    name, colon, first = f"{lines[0]} ".partition(": ")
    if not colon or _QUOTED.search(name):
        return None
    spoken = [first, *lines[1:]]
    if ios:
        spoken = [line.partition("\u200e")[0] for line in spoken]
    text = _ATTACHED.sub("", _EDITED.sub("", clean_text("\n".join(spoken)))).strip()
    sender = clean_name(name).removeprefix("~").strip()
    if not sender or not text or _PLACEHOLDER.fullmatch(text):
        return None
    return Message(str(number), time, sender, text)
