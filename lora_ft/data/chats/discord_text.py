"""Reader of DiscordChatExporter's text and CSV exports of a channel."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.dates import day_of, order_of, split_date
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, table, text_lines

COLUMNS = ("AuthorID", "Author", "Date", "Content")
_RULE = "=" * 62
_HEAD = re.compile(r"\[([^\[\]\n]{8,40})\] (.{1,100})")
_PINNED = " (pinned)"
_EXTRAS = frozenset(("{Attachments}", "{Embed}", "{Stickers}", "{Reactions}"))
# Discord's notices in DiscordChatExporter's wording.
_OWN = re.compile(
    r"(Joined the server|Pinned a message|Started a thread|Left the group|Changed the channel icon"
    r"|Changed the channel name: .{0,200}|(Added|Removed) .{1,100} (to|from) the group"
    r"|Started a call that lasted [\d,.]+ minutes)\."
)
_REMEDY = "export the channel as JSON, whose dates are complete"


def is_discord_text(file: File) -> bool:
    """Return whether a file begins like a text export of DiscordChatExporter."""
    with file.open("rb") as content:
        start = content.read(200).removeprefix(b"\xef\xbb\xbf")
    return re.match(rb"={62}\r?\n(Guild|Server): ", start) is not None


def is_discord_table(file: File) -> bool:
    """Return whether a file begins like a CSV export of DiscordChatExporter."""
    with file.open("rb") as content:
        return (
            content.read(200)
            .removeprefix(b"\xef\xbb\xbf")
            .replace(b'"', b"")
            .startswith(b"AuthorID,Author,Date,Content")
        )


def read_discord_text(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (channel, message) for every message of a text export. A message's id is its line number.

    The format does not distinguish bots from people.

    Raises:
        UsageError: The order of day and month is ambiguous, or no order fits.
        LoraFtError: The file is not UTF-8, or its header is missing.
    """
    order = order_of(((parts, _is_american(head)) for parts, head in _heads(file)), file, _REMEDY)
    chat = _channel(file)
    for number, (date, author), lines in _entries(file):
        text = clean_text("\n".join(_spoken(lines)))
        sender = clean_name(author.removesuffix(_PINNED))
        if text and sender and not _OWN.fullmatch(text):
            yield chat, Message(f"{number}", _time(date, order, f"{file}:{number}"), sender, text)


def read_discord_table(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (channel, message) for every message of a CSV export. A message's id is its line number.

    Raises:
        UsageError: The order of day and month is ambiguous, or no order fits.
        LoraFtError: The file is damaged.
    """
    local = [
        (split[0], _is_american(date))
        for _, (_, _, date, _) in table(file, COLUMNS)
        for split in [split_date(date)]
        if split
    ]
    order = order_of(local, file, _REMEDY) if local else ""
    chat = clean_text(Path(file.name).stem)
    for number, (_, author, date, content) in table(file, COLUMNS):
        text, sender = clean_text(content), clean_name(author)
        if text and sender and not _OWN.fullmatch(text):
            yield chat, Message(f"{number}", _time(date, order, f"{file}:{number}"), sender, text)


def _heads(file: File) -> Iterator[tuple[tuple[str, str, str], str]]:
    for _, (date, _), _ in _entries(file):
        split = split_date(date)
        if split is not None:
            yield split[0], date


def _is_american(date: str) -> bool:
    """Return whether a date has the form of American English alone: 11/20/2023 9:00 AM."""
    return re.fullmatch(r"\d{1,2}/\d{1,2}/\d{4},? \d{1,2}:\d{2}[ \u00a0\u202f][AP]M", date.strip()) is not None


def _time(date: str, order: str, where: str) -> float:
    """Return the time of a local or ISO 8601 date, in seconds. A local date keeps its own clock."""
    split = split_date(date)
    if split is None:
        return Fields({"date": date}, where, "DiscordChatExporter").date("date")
    day = day_of(split[0], order)
    if day is None:
        raise LoraFtError(f"{where} has no date that can be read ({date[:40]})", _REMEDY)
    return calendar.timegm(day.timetuple()) + split[1]


def _channel(file: File) -> str:
    """Return the name of the channel from the header, without its category."""
    for number, line in text_lines(file):
        if line.startswith("Channel: "):
            return clean_text(line.removeprefix("Channel: ").rpartition(" / ")[2])
        if number > 1 and line == _RULE:
            break
    return clean_text(Path(file.name).stem)


def _entries(file: File) -> Iterator[tuple[int, tuple[str, str], list[str]]]:
    """Yield (line number, (date, author), body lines) for each entry. A head follows a blank line or the header."""
    rules, blank = 0, True
    head: tuple[int, tuple[str, str]] | None = None
    lines: list[str] = []
    for number, line in text_lines(file):
        if line == _RULE:
            rules += 1
            if rules > 2:  # the footer
                break
        elif rules >= 2:
            match = _HEAD.fullmatch(line) if blank else None
            if match is not None and (split_date(match[1]) is not None):
                if head is not None:
                    yield *head, lines
                head, lines = (number, (match[1], match[2])), []
            else:
                lines.append(line)
        blank = not line.strip()
    if head is not None:
        yield *head, lines


def _spoken(lines: list[str]) -> list[str]:
    """Return the lines before attachments, embeds, stickers and reactions. Each of those follows a blank line."""
    for place, line in enumerate(lines):
        if line in _EXTRAS and (place == 0 or not lines[place - 1].strip()):
            return lines[:place]
    return lines
