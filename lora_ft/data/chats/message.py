"""A message of a chat, whatever program it was exported from."""

from __future__ import annotations

import re
from dataclasses import dataclass

_INVISIBLE = re.compile("[\x00\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")  # direction marks, BOM


@dataclass(frozen=True, slots=True)
class Message:
    """One message with a text.

    Attributes:
        id: of the export; unique within a chat.
        time: seconds since 1970 in UTC; where an export has no time zones, on its own clock.
        sender: name, on one line.
        text: not empty; may have several lines.
        reply_to: id of the message that it answers, where the export says so.
        thread: topic or thread of the chat that it stands in, "" for the chat itself. Each is a conversation.
        forwarded: whether somebody else wrote the text.
        bot: whether a program wrote the text.
    """

    id: str
    time: float
    sender: str
    text: str
    reply_to: str | None = None
    thread: str = ""
    forwarded: bool = False
    bot: bool = False


def clean_text(text: str) -> str:
    """Return a text without direction marks, halves of characters and space around it."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    lines = _INVISIBLE.sub("", whole).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def clean_name(name: str) -> str:
    """Return a name as it stands before a colon: on one line, its own colons gone."""
    return " ".join(clean_text(name).replace(":", " ").split())
