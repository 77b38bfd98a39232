"""Reader of WhatsApp's text export from Android and iOS, in all of WhatsApp's languages, regions and clocks.

A message begins with a head (`lora_ft.data.chats.heads`). A line without a head continues the message before. The file
is read in three passes and never held in memory:

1. A survey determines the format of the heads.
2. The time and sender of each head are recorded, to detect pasted heads (`lora_ft.data.chats.pasted`).
3. The messages are yielded in the order of the file.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.heads import Head, Survey, earliest, find_head
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.pasted import LONGEST_PASTE, find_pasted
from lora_ft.data.chats.places import File, text_lines
from lora_ft.data.chats.senders import Senders
from lora_ft.data.chats.whatsapp_files import chat_name, chat_text
from lora_ft.data.chats.whatsapp_words import MARK, written

_LOOSE_HEAD = re.compile(r"\[?[^\n]{2,40}?\d[:.]\d\d[^\n]{0,20}?(?:\]| [-–—] )")
_SHOWN = 60  # maximum characters of a line shown in an error
_MINUTE = 60.0  # seconds; most heads state no seconds
_PARTS = {"d": "day", "m": "month", "y": "year"}
_LONGEST_MESSAGE = 1 << 20  # characters; WhatsApp allows 65,536
_REMEDY = "put a blank before it if it is text of a message; otherwise report this form"


def read_whatsapp(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text, in the order of the file. A message's id is its line number.

    Args:
        file: The text, WhatsApp's zip file of it, or a folder with the content of the zip file.

    Raises:
        UsageError: No line begins a message, or a line that begins like a message cannot be read.
        LoraFtError: The file is damaged or not UTF-8.
    """
    export, chat = _Export(file), chat_name(file)
    open_message: _Open | None = None
    later: tuple[float, UsageError] | None = None
    ordinal = -1
    for number, line in text_lines(export.text):
        head = find_head(line)
        has_shape = head is not None and _is_own(head, line, export.survey)
        ordinal += has_shape
        if head is not None and has_shape and ordinal not in export.pasted:
            if later is not None and later[0] <= export.times[ordinal]:
                raise later[1]
            later = None
            if open_message is not None and (message := open_message.close()) is not None:
                yield chat, message
            spoken = export.senders.split(line[head.end :])
            open_message = _Open(f"{export.text}:{number}", number, export.times[ordinal], head, spoken)
        elif open_message is not None:
            if head is not None and not has_shape:
                later = later or _later(export.text, number, line, head, open_message.time)
            open_message.add(line)
    if later is not None:
        raise later[1]
    if open_message is not None and (message := open_message.close()) is not None:
        yield chat, message


def doubts_of_whatsapp(file: Path) -> list[str]:
    """Return descriptions of ambiguous parts of an export: dates, halves of the day, heads read as pasted text.

    Args:
        file: Export that `read_whatsapp` has already read.
    """
    export, doubts = _Export(file), []
    if export.survey.is_ambiguous:
        order = ", ".join(_PARTS[part] for part in export.survey.order)
        doubts.append(f"{export.text}: dates fit several orders; they are read as {order}")
    if export.survey.half_is_unknown:
        doubts.append(
            f"{export.text}: no hour exceeds 12 or has AM or PM, so the half of the day is unknown; "
            "times are read as on a 24-hour clock (export with that clock if evenings are read as mornings)"
        )
    if count := len(export.pasted) + export.survey.others:
        doubts.append(f"{export.text}: {count:,} heads inside messages are read as pasted text")
    return doubts


class _Export:
    """Export after the first two passes, which read its heads but not its messages.

    Attributes:
        text: File with the text.
        survey, senders: Survey of the heads, and counts of the senders.
        times: Time of each head, in seconds.
        pasted: Indices of pasted heads, which are text.

    Raises:
        UsageError, LoraFtError: See `read_whatsapp`.
    """

    def __init__(self, file: Path) -> None:
        self.text = chat_text(file)
        self.survey = _survey(self.text)
        assert self.survey.shape is not None
        self.senders = Senders(bracket=self.survey.shape.bracket)
        self.times, names = _timeline(self.text, self.survey, self.senders)
        self.pasted = find_pasted(self.times, names)


class _Open:
    """Message whose end has not been read yet."""

    def __init__(self, place: str, number: int, time: float, head: Head, spoken: tuple[str, str] | None) -> None:
        self.time = time
        self._place, self._ios = place, head.shape.bracket or head.shape.colons
        self._number = number
        self._sender, first = spoken or ("", "")
        self._lines = [first]
        self._length = len(first)

    def add(self, line: str) -> None:
        """Append the next line.

        Raises:
            UsageError: The message is longer than `_LONGEST_MESSAGE`.
        """
        self._length += len(line) + 1
        if self._length > _LONGEST_MESSAGE:
            raise UsageError(
                f"{self._place} is a message of over a million characters", "check whether it is WhatsApp's export"
            )
        self._lines.append(line)

    def close(self) -> Message | None:
        """Return the message, or None if WhatsApp wrote it or it has no text."""
        sender = clean_name(self._sender).removeprefix("~").strip()
        text = clean_text(written("\n".join(self._lines), ios=self._ios)) if sender else ""
        return Message(str(self._number), self.time, sender, text) if text else None


def _survey(text: File) -> Survey:
    """Return the survey of a file's heads.

    Raises:
        UsageError: The file has no heads, or a line before the first looks like one.
    """
    survey, loose, first = Survey(), "", ""
    for number, line in text_lines(text):
        head = find_head(line)
        if head is not None:
            first = first or f"; {text}:{number} begins like one, but its date is unknown (got {_shown(line)})"
            survey.add(head, line)
        elif survey.shape is None and not loose and _LOOSE_HEAD.match(line[:_SHOWN]):
            loose = f"{text}:{number} begins like a message, but its date is unknown (got {_shown(line)})"
    if loose:
        raise UsageError(loose, _REMEDY)
    if survey.shape is None or not survey.has_dates:
        raise UsageError(
            f"{text} has no WhatsApp message{first}", "check whether it is the text of WhatsApp's Export chat"
        )
    if survey.lacks_words:
        raise UsageError(
            f"{text} has times on a 12-hour clock without AM and PM", "export the chat with the phone's 24-hour clock"
        )
    if survey.others > max(survey.count, LONGEST_PASTE):
        raise UsageError(
            f"{text} has heads of two forms ({survey.count:,} and {survey.others:,})", "write each to its own file"
        )
    return survey


def _timeline(text: File, survey: Survey, senders: Senders) -> tuple[array[float], array[int]]:
    """Return the time and the sender's number of each head, in 16 bytes per head. WhatsApp itself is number -1.

    Raises:
        UsageError: A head has no time.
    """
    times, names, numbers = array("d"), array("l"), dict[str, int]()
    for number, line in text_lines(text):
        head = find_head(line)
        if head is None or not _is_own(head, line, survey):
            continue
        time = survey.time_of(head)
        if time is None:
            raise UsageError(
                f"{text}:{number} begins like a message, but its date or time is unknown (got {_shown(line)})",
                _REMEDY,
            )
        content = line[head.end :].lstrip(MARK)
        name = senders.add(content)
        is_own = not name or content[len(name) :].startswith(f": {MARK}")
        times.append(time)
        names.append(-1 if is_own else numbers.setdefault(name, len(numbers)))
    return times, names


def _is_own(head: Head, line: str, survey: Survey) -> bool:
    """Return whether a head has the file's shape. `99.99.23, 22:15 - ` without a sender is text."""
    return head.shape == survey.shape and (": " in line[head.end :] or earliest(head) is not None)


def _later(text: File, number: int, line: str, head: Head, time: float) -> tuple[float, UsageError] | None:
    """Return the time and the error of a head of another shape that is later than the message around it, else None.

    Such a head cannot be pasted. Appointments (`25.12.2023 18:00: dinner`) name no sender, or earlier messages follow.
    """
    start = earliest(head)
    if head.shape.colons or start is None or start < time + _MINUTE or ": " not in line[head.end :]:
        return None
    return start, UsageError(
        f"{text}:{number} begins like a message, but unlike those before it (got {_shown(line)})", _REMEDY
    )


def _shown(line: str) -> str:
    return repr(line[:_SHOWN] + "…" * (len(line) > _SHOWN))
