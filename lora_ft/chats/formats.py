"""The formats of chat exports: which one a file has, its reader, and the newest messages it holds."""

from __future__ import annotations

import heapq
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from export.errors import LoraFtError, UsageError
from lora_ft.chats.discord import read_discord
from lora_ft.chats.message import Message
from lora_ft.chats.slack import read_slack
from lora_ft.chats.stream import read, top_keys
from lora_ft.chats.telegram import read_telegram
from lora_ft.chats.whatsapp import read_whatsapp

# (chat, message) of each message with a text, in the order of the export. None reads a file as a whole.
READERS: dict[str, Callable[[Path], Iterator[tuple[str, Message]]]] = {
    "telegram": read_telegram,
    "whatsapp": read_whatsapp,
    "slack": read_slack,
    "discord": read_discord,
}
# Text exports state local clock times, which jump when a clock is set. Their order in the file is authoritative.
_ORDERED_BY_FILE = {"whatsapp"}
_SHOWN = 8  # names of chats in an error
_OF_DISCORD, _OF_TELEGRAM = {"guild", "channel"}, {"messages", "chats", "left_chats"}


def read_chats(
    file: Path, kind: str = "auto", keep: int = 20_000, only: Collection[str] | None = None
) -> dict[str, list[Message]]:
    """The newest messages of an export by chat, each chat sorted by time; of WhatsApp, in the order of the file.

    Memory holds `keep` messages, however large the file.

    Args:
        file: of the export; of Slack also its folder.
        kind: one of `READERS`, or "auto" to find out.
        keep: how many messages of all its chats together.
        only: names of the chats to read; by default all.

    Raises:
        UsageError: the file is no export of that kind, or of none that is known.
        LoraFtError: it is damaged.
    """
    chosen = find_format(file) if kind == "auto" else kind
    names: dict[str, None] = {}
    found = _newest(_noted(READERS[chosen](file), names, only), keep, by_time=chosen not in _ORDERED_BY_FILE)
    if not found and names:
        shown = ", ".join(list(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise UsageError(f"{file} has no chat of data.chat.only = {only}", f"it has {shown}")
    if not found:
        raise UsageError(f"{file} holds no messages of {chosen}", "is it the export of another program?")
    return found


def find_format(file: Path) -> str:
    """The format of an export, by its name and its first keys.

    Raises:
        UsageError: none that is known.
        LoraFtError: the file is damaged.
    """
    if file.is_dir():
        return "slack"
    if file.suffix.lower() == ".zip":
        return "slack" if _has_days(file) else "whatsapp"
    if file.suffix.lower() == ".txt":
        return "whatsapp"
    if file.suffix.lower() == ".json":
        for key in read(file, top_keys):
            if key in _OF_DISCORD | _OF_TELEGRAM:
                return "discord" if key in _OF_DISCORD else "telegram"
    raise UsageError(f"{file} is no export of a chat that is known", f"data.chat.format: {', '.join(READERS)}")


def _noted(
    messages: Iterable[tuple[str, Message]], names: dict[str, None], only: Collection[str] | None
) -> Iterator[tuple[str, Message]]:
    """The messages of the chats wanted; the names of all go into `names`."""
    for chat, message in messages:
        names[chat] = None
        if only is None or chat in only:
            yield chat, message


def _has_days(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".json") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise LoraFtError(f"{file} is no whole zip file ({error})", "export or copy it again") from error


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
