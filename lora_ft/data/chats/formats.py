"""The formats of chat exports: which one a file has, its reader, and the newest messages it holds."""

from __future__ import annotations

import heapq
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

# (chat, message) of each message with a text, in the order of the export. None reads a file as a whole.
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
# Text exports state local clock times, which jump when a clock is set. Their order in the file is authoritative.
_ORDERED_BY_FILE = {"whatsapp", "line", "kakaotalk"}
_SHOWN = 8  # names of chats in an error


@dataclass(frozen=True)
class Choice:
    """Which messages of an export are read.

    Attributes:
        only: names of chats, or of "chat › topic"; None for all.
        forwarded: whether to keep what was forwarded.
        bots: whether to keep what programs wrote.
        leave_out: names of people whose messages are left out.
    """

    only: Collection[str] | None = None
    forwarded: bool = False
    bots: bool = False
    leave_out: Collection[str] = ()

    def has_chat(self, chat: str, conversation: str) -> bool:
        """Return whether a conversation of a chat is read."""
        return self.only is None or chat in self.only or conversation in self.only

    def reason(self, message: Message) -> str:
        """Return why a message of a chat that is read is left out, "" for one that is kept."""
        if message.sender in self.leave_out:
            return "of people in leave_out"
        if message.forwarded and not self.forwarded:
            return "forwarded"
        return "of bots" if message.bot and not self.bots else ""


@dataclass
class Census:
    """Who writes in the chats that are read, and how many messages are left out.

    Attributes:
        people: names of all senders, also of those who are left out.
        left_out: number of messages by reason.
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
    """Return the newest messages of an export by conversation: a chat, or a topic or thread of it.

    A conversation is sorted by time, one of a text export stays in the order of the file.

    Memory holds `keep` messages, however large the file.

    Args:
        file: of the export, or its folder.
        kind: one of `READERS`, or "auto" to find out.
        keep: maximum number of messages of all its chats together.
        choice: chats and messages to read.
        census: takes the senders and the numbers of messages that are left out.

    Raises:
        UsageError: the file is no export of that kind, or of none that is known.
        LoraFtError: it is damaged.
    """
    chosen = find_format(file) if kind == "auto" else kind
    names: dict[str, None] = {}
    found = _newest(
        _noted(READERS[chosen](file), names, choice, census or Census()), keep, by_time=chosen not in _ORDERED_BY_FILE
    )
    if not found and choice.only is not None and names and names.keys().isdisjoint(choice.only):
        shown = ", ".join(list(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise UsageError(f"{file} has no chat of data.chat.only = {choice.only}", f"it has {shown}")
    if not found and names:
        raise UsageError(
            f"{file} holds no message that is not left out", "check data.chat: forwarded, bots, leave_out, only"
        )
    if not found:
        raise UsageError(f"{file} holds no messages of {chosen}", "is it the export of another program?")
    return found


def pages_of(file: Path) -> list[Path]:
    """Return the files that are read together with a file, itself among them: all pages of a chat for one of them."""
    for pattern in (telegram_html.PAGE, messenger.PAGE):
        if pattern.fullmatch(file.name) and file.is_file():
            return sorted(page for page in file.parent.iterdir() if pattern.fullmatch(page.name))
    return [file]


def doubts(file: Path, kind: str = "auto") -> list[str]:
    """Return what of an export was read by convention, or may have been meant otherwise.

    Args:
        file, kind: as of `read_chats`.
    """
    chosen = find_format(file) if kind == "auto" else kind
    return doubts_of_whatsapp(file) if chosen == "whatsapp" else []


def _noted(
    messages: Iterable[tuple[str, Message]], names: dict[str, None], choice: Choice, census: Census
) -> Iterator[tuple[str, Message]]:
    """Yield (conversation, message) of the messages chosen; note all chats, senders and what is left out."""
    for chat, message in messages:
        names[chat] = None
        conversation = f"{chat} › {message.thread}" if message.thread else chat
        if not choice.has_chat(chat, conversation):
            continue
        census.people.add(message.sender)
        reason = choice.reason(message)
        if reason:
            census.left_out[reason] += 1
        else:
            yield conversation, message


def _newest(messages: Iterable[tuple[str, Message]], keep: int, *, by_time: bool) -> dict[str, list[Message]]:
    """Return the newest messages by chat: sorted by time (stable) if `by_time`, else the last ones of the file."""
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
