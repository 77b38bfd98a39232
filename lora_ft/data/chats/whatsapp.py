"""WhatsApp's text export, of Android and iOS, in every language, region and clock that it offers.

A message begins with a head (`lora_ft.data.chats.heads`); lines without one go on with the one before. The file is read
three times and never held: a survey finds how its heads are read, a second pass notes time and sender of each head,
from which pasted heads are told (`_pasted`), and the third yields the messages in the order of the file.
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
_SHOWN = 60  # characters of a line in an error
_MINUTE = 60.0  # seconds; most heads have none
_PARTS = {"d": "day", "m": "month", "y": "year"}
_LONGEST_MESSAGE = 1 << 20  # characters; WhatsApp allows 65,536
_REMEDY = "if it is text of a message, put a blank before it; otherwise report its form"


def read_whatsapp(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) of every message with a text, in the order of the file; the id is the number of its line.

    Args:
        file: the text, or the zip file that WhatsApp makes of it, or what is inside as a folder.

    Raises:
        UsageError: no line begins a message, or one begins like a message and cannot be read as one.
        LoraFtError: the file is damaged or not UTF-8.
    """
    export, chat = _Export(file), chat_name(file)
    open_message: _Open | None = None
    later: tuple[float, UsageError] | None = None
    ordinal = -1
    for number, line in text_lines(export.text):
        head = find_head(line)
        own = head is not None and _is_own(head, line, export.survey)
        ordinal += own
        if head is not None and own and ordinal not in export.pasted:
            if later is not None and later[0] <= export.times[ordinal]:
                raise later[1]
            later = None
            if open_message is not None and (message := open_message.close()) is not None:
                yield chat, message
            spoken = export.senders.split(line[head.end :])
            open_message = _Open(f"{export.text}:{number}", number, export.times[ordinal], head, spoken)
        elif open_message is not None:
            if head is not None and not own:
                later = later or _later(export.text, number, line, head, open_message.time)
            open_message.add(line)
    if later is not None:
        raise later[1]
    if open_message is not None and (message := open_message.close()) is not None:
        yield chat, message


def doubts_of_whatsapp(file: Path) -> list[str]:
    """Return what of an export was read by convention: dates, halves of the day, heads taken for pasted text.

    Args:
        file: as of `read_whatsapp`, which has read it.
    """
    export, found = _Export(file), []
    if export.survey.is_ambiguous:
        order = ", ".join(_PARTS[part] for part in export.survey.order)
        found.append(f"{export.text}: its dates fit several orders; they are read as {order}")
    if export.survey.half_is_unknown:
        found.append(
            f"{export.text}: no hour is after 12 and none has AM or PM, so the half of the day is unknown; "
            "times are read as of a 24-hour clock (if evenings are read as mornings, export with that clock)"
        )
    if count := len(export.pasted) + export.survey.others:
        found.append(f"{export.text}: {count:,} heads stand inside of messages, as pasted text")
    return found


class _Export:
    """An export whose heads were read, and whose messages were not.

    Attributes:
        text: the file.
        survey, senders: how its heads and senders are read.
        times: seconds of each head.
        pasted: indices of heads that are text.

    Raises:
        UsageError, LoraFtError: as of `read_whatsapp`.
    """

    def __init__(self, file: Path) -> None:
        self.text = chat_text(file)
        self.survey = _survey(self.text)
        assert self.survey.shape is not None
        self.senders = Senders(bracket=self.survey.shape.bracket)
        self.times, names = _timeline(self.text, self.survey, self.senders)
        self.pasted = find_pasted(self.times, names)


class _Open:
    """A message whose end has not been read yet."""

    def __init__(self, place: str, number: int, time: float, head: Head, spoken: tuple[str, str] | None) -> None:
        self.time = time
        self._place, self._ios = place, head.shape.bracket or head.shape.colons
        self._number = number
        self._sender, first = spoken or ("", "")
        self._lines = [first]
        self._length = len(first)

    def add(self, line: str) -> None:
        """Go on with the next line.

        Raises:
            UsageError: the message becomes longer than any of WhatsApp's.
        """
        self._length += len(line) + 1
        if self._length > _LONGEST_MESSAGE:
            raise UsageError(f"{self._place} is a message of over a million characters", "is it WhatsApp's export?")
        self._lines.append(line)

    def close(self) -> Message | None:
        """Return the message, or None where WhatsApp wrote it, or where it has no text."""
        sender = clean_name(self._sender).removeprefix("~").strip()
        text = clean_text(written("\n".join(self._lines), ios=self._ios)) if sender else ""
        return Message(str(self._number), self.time, sender, text) if text else None


def _survey(text: File) -> Survey:
    """Find how the heads of a file are read.

    Raises:
        UsageError: there are none, or a line before them seems to be one.
    """
    survey, loose, first = Survey(), "", ""
    for number, line in text_lines(text):
        head = find_head(line)
        if head is not None:
            first = first or f"; {text}:{number} begins like one, but its date is not understood (got {_shown(line)})"
            survey.add(head, line)
        elif survey.shape is None and not loose and _LOOSE_HEAD.match(line[:_SHOWN]):
            loose = f"{text}:{number} begins like a message, but its date is not understood (got {_shown(line)})"
    if loose:
        raise UsageError(loose, _REMEDY)
    if survey.shape is None or not survey.has_dates:
        raise UsageError(f"{text} holds no WhatsApp message{first}", "is it the text that WhatsApp's Export chat made?")
    if survey.lacks_words:
        raise UsageError(
            f"{text} has times of a 12-hour clock without AM and PM", "export the chat with the phone's 24-hour clock"
        )
    if survey.others > max(survey.count, LONGEST_PASTE):
        raise UsageError(f"{text} has heads of two forms ({survey.count:,} and {survey.others:,})", "give each a file")
    return survey


def _timeline(text: File, survey: Survey, senders: Senders) -> tuple[array[float], array[int]]:
    """Return the time of each head, and the number of its sender, -1 where WhatsApp itself speaks: 16 bytes a head.

    Raises:
        UsageError: a head has no time.
    """
    times, names, numbers = array("d"), array("l"), dict[str, int]()
    for number, line in text_lines(text):
        head = find_head(line)
        if head is None or not _is_own(head, line, survey):
            continue
        time = survey.time_of(head)
        if time is None:
            raise UsageError(
                f"{text}:{number} begins like a message, but its date or time is not understood (got {_shown(line)})",
                _REMEDY,
            )
        rest = line[head.end :].lstrip(MARK)
        name = senders.add(rest)
        is_own = not name or rest[len(name) :].startswith(f": {MARK}")
        times.append(time)
        names.append(-1 if is_own else numbers.setdefault(name, len(numbers)))
    return times, names


def _is_own(head: Head, line: str, survey: Survey) -> bool:
    """Whether a head has the shape of the file's; `99.99.23, 22:15 - ` without a sender is text."""
    return head.shape == survey.shape and (": " in line[head.end :] or earliest(head) is not None)


def _later(text: File, number: int, line: str, head: Head, time: float) -> tuple[float, UsageError] | None:
    """Return the time of a head of another shape, and what to say of it, if it is later than the message it stands in.

    Nobody can have pasted that. Appointments (`25.12.2023 18:00: dinner`) name no sender, or the chat goes on before.
    """
    other = earliest(head)
    if head.shape.colons or other is None or other < time + _MINUTE or ": " not in line[head.end :]:
        return None
    return other, UsageError(
        f"{text}:{number} begins like a message, but in another form than those before (got {_shown(line)})", _REMEDY
    )


def _shown(line: str) -> str:
    return repr(line[:_SHOWN] + "…" * (len(line) > _SHOWN))
