"""The JSON of DiscordChatExporter, one channel a file."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from export.errors import LoraFtError
from lora_ft.chats.message import Message, clean_name, clean_text
from lora_ft.chats.stream import File, objects

_SPOKEN = ("Default", "Reply")  # every other type is Discord's own
_MENTION, _EMOJI = re.compile(r"<@!?(\d+)>"), re.compile(r"<a?(:\w+:)\d+>")


def read_discord(file: File) -> Iterator[tuple[str, Message]]:
    """(channel, message) of every message that a person wrote.

    Raises:
        LoraFtError: the file is damaged, or a message has no author or date.
    """
    channel = clean_text(str(next(objects(file, "channel.name"), "")))
    for value in objects(file, "messages.item"):
        if not isinstance(value, dict) or value.get("type") not in _SPOKEN:
            continue
        try:
            author = value["author"]
            text = _text(value)
            if text and not author.get("isBot"):
                yield (
                    channel,
                    Message(
                        id=str(value["id"]),
                        time=datetime.datetime.fromisoformat(value["timestamp"]).timestamp(),
                        sender=_name(author),
                        text=text,
                        reply_to=(value.get("reference") or {}).get("messageId"),
                    ),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LoraFtError(
                f"{file}, message {value.get('id')}, is not as DiscordChatExporter writes it ({error!r})",
                "export the channel again, as JSON",
            ) from error


def _text(value: dict[str, Any]) -> str:
    names = {str(person["id"]): _name(person) for person in value.get("mentions") or ()}
    text = _MENTION.sub(lambda found: f"@{names.get(found[1], found[1])}", value["content"])
    return clean_text(_EMOJI.sub(r"\1", text))


def _name(person: dict[str, Any]) -> str:
    return clean_name(person.get("nickname") or person["name"])
