"""Formats of chat exports: the reader of each, and the newest messages of an export."""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.data.chats import messenger, telegram_html
from lora_ft.data.chats.detect import find_format
from lora_ft.data.chats.discord import read_discord
from lora_ft.data.chats.kakaotalk import read_kakaotalk
from lora_ft.data.chats.line import read_line
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.messenger import read_messenger
from lora_ft.data.chats.signal import read_signal
from lora_ft.data.chats.slack import read_slack
from lora_ft.data.chats.telegram_folder import read_telegram_export
from lora_ft.data.chats.whatsapp import doubts_of_whatsapp, read_whatsapp

# Each reader yields (chat, message) for messages with a text, in the export's order, without loading the whole file.
READERS: dict[str, Callable[[Path], Iterator[tuple[str, Message]]]] = {
    "telegram": read_telegram_export,
    "whatsapp": read_whatsapp,
    "slack": read_slack,
    "discord": read_discord,
    "messenger": read_messenger,
    "signal": read_signal,
    "line": read_line,
    "kakaotalk": read_kakaotalk,
}
# Text exports state local clock times, which jump when a clock is set. The order in the file is authoritative.
_ORDERED_BY_FILE = {"whatsapp", "line", "kakaotalk"}
_SHOWN = 8  # maximum names of chats in an error


@dataclass(frozen=True)
class Choice:
    """Selection of messages to read from an export.

    Attributes:
        only: Names of the chats to read in NFC, or "chat › topic" for one topic. None for all chats.
        forwarded: Keep forwarded messages.
        bots: Keep messages of bots.
        leave_out: Names of people to leave out.
    """

    only: Collection[str] | None = None
    forwarded: bool = False
    bots: bool = False
    leave_out: Collection[str] = ()

    def has_chat(self, chat: str, conversation: str) -> bool:
        """Return whether the selection includes a conversation of a chat."""
        return self.only is None or chat in self.only or conversation in self.only

    def reason(self, message: Message) -> str:
        """Return the reason to leave out a message of a selected chat, or "" to keep it."""
        if message.sender in self.leave_out:
            return "of people in leave_out"
        if message.forwarded and not self.forwarded:
            return "forwarded"
        return "of bots" if message.bot and not self.bots else ""


@dataclass
class Census:
    """Senders of the selected chats, and counts of messages left out.

    Attributes:
        people: Names of all senders, including those left out.
        left_out: Number of messages left out, by reason.
    """

    people: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


EVERY_CHAT = Choice()


def read_chats(
    file: Path,
    kind: str = "auto",
    keep: int = 20_000,
    choice: Choice = EVERY_CHAT,
    census: Census | None = None,
) -> dict[str, list[Message]]:
    """Return the newest messages of an export by conversation. A conversation is a chat, a topic or a thread.

    Messages are sorted by time, except that those of a text export keep the order of the file. Memory holds at most
    `keep` messages, however large the file.

    Args:
        file: File or folder of the export.
        kind: One of `READERS`, or "auto" to detect the format.
        keep: Maximum number of messages of all chats together.
        choice: Selection of chats and messages.
        census: Receives the senders and the counts of messages left out.

    Raises:
        UsageError: The file is not an export of that kind, or its format is unknown.
        LoraFtError: The export is damaged.
    """
    format_name = find_format(file) if kind == "auto" else kind
    names: dict[str, None] = {}
    newest = _newest(
        _noted(READERS[format_name](file), names, choice, census or Census()),
        keep,
        by_time=format_name not in _ORDERED_BY_FILE,
    )
    if not newest and choice.only is not None and names and names.keys().isdisjoint(choice.only):
        shown = ", ".join(list(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise UsageError(f"{file} has no chat of data.chat.only = {choice.only}", f"use names among {shown}")
    if not newest and names:
        raise UsageError(
            f"{file} has no messages after the exclusions of data.chat", "check forwarded, bots, leave_out and only"
        )
    if not newest:
        raise UsageError(
            f"{file} has no messages of {format_name}", "check whether it is the export of another program"
        )
    return newest


def pages_of(file: Path) -> list[Path]:
    """Return all files read together with a file, including itself: for a page of a chat, all its pages."""
    for pattern in (telegram_html.PAGE, messenger.PAGE):
        if pattern.fullmatch(file.name) and file.is_file():
            return sorted(page for page in file.parent.iterdir() if pattern.fullmatch(page.name))
    return [file]


def doubts(file: Path, kind: str = "auto") -> list[str]:
    """Return descriptions of ambiguous parts of an export, which were read by convention.

    Args:
        file, kind: See `read_chats`.
    """
    format_name = find_format(file) if kind == "auto" else kind
    return doubts_of_whatsapp(file) if format_name == "whatsapp" else []


def _noted(
    messages: Iterable[tuple[str, Message]], names: dict[str, None], choice: Choice, census: Census
) -> Iterator[tuple[str, Message]]:
    """Yield (conversation, message) for selected messages. Record all chats, senders and messages left out."""
    for name, message in messages:
        chat = unicodedata.normalize("NFC", name)  # macOS decomposes accents in file names
        names[chat] = None
        conversation = unicodedata.normalize("NFC", f"{chat} › {message.thread}") if message.thread else chat
        if not choice.has_chat(chat, conversation):
            continue
        census.people.add(message.sender)
        reason = choice.reason(message)
        if reason:
            census.left_out[reason] += 1
        else:
            yield conversation, message


def _newest(messages: Iterable[tuple[str, Message]], keep: int, *, by_time: bool) -> dict[str, list[Message]]:
    """Return the newest messages by chat: by time with a stable sort if `by_time`, else the last of the file."""
    heap: list[tuple[float, int, str, Message]] = []
    for order, (chat, message) in enumerate(messages):
        entry = (message.time if by_time else 0.0, order, chat, message)
        if len(heap) < keep:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    chats: dict[str, list[Message]] = {}
    for _, _, chat, message in sorted(heap):
        chats.setdefault(chat, []).append(message)
    return chats
