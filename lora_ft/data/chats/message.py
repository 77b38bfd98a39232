"""Message of a chat, independent of the program that exported it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_INVISIBLE = re.compile("[\x00\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")  # direction marks, BOM


@dataclass(frozen=True, slots=True)
class Message:
    """Message with a text.

    Attributes:
        id: Identifier in the export, unique within a chat.
        time: Seconds since 1970 in UTC, or on the export's own clock if it has no time zones.
        sender: Name of the sender, on one line.
        text: Text of one or more lines, never empty.
        reply_to: Id of the answered message, or None if the export states none.
        thread: Topic or thread within the chat, "" for the chat itself. Each is a conversation of its own.
        forwarded: True if another person wrote the text.
        bot: True if a program wrote the text.
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
    """Return a text without direction marks, lone surrogates and surrounding whitespace."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    lines = _INVISIBLE.sub("", whole).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def clean_name(name: str) -> str:
    """Return a name fit to precede a colon: on one line, without colons, and in one encoding of accents (NFC)."""
    return " ".join(clean_text(unicodedata.normalize("NFC", name)).replace(":", " ").split())
