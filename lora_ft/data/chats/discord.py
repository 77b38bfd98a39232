"""Reader of DiscordChatExporter's exports of a channel: JSON here, text and CSV in `discord_text`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.data.chats.discord_text import is_discord_table, is_discord_text, read_discord_table, read_discord_text
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File
from lora_ft.data.chats.stream import BEGIN, objects, walk

_SPOKEN = ("Default", "Reply")  # messages of every other type are written by Discord
_MENTION, _EMOJI = re.compile(r"<@!?(\d+)>"), re.compile(r"<a?(:\w+:)\d+>")
_HEADER = ("channel.type", "channel.category", "channel.name")
_PROGRAM = "DiscordChatExporter as JSON"


def read_discord(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (channel, message) for every message with a text, from JSON, text or CSV.

    Raises:
        LoraFtError: The file is damaged, or a message differs from DiscordChatExporter's format.
    """
    if is_discord_text(file):
        return read_discord_text(file)
    return read_discord_table(file) if is_discord_table(file) else _read_json(file)


def _read_json(file: File) -> Iterator[tuple[str, Message]]:
    header: dict[str, str] = {}
    for key, value in walk(file, _HEADER, begins={"messages.item"}):
        if value is BEGIN:  # the header precedes the messages
            break
        header[key] = clean_text(Fields({key: value}, f"{file}", _PROGRAM).text(key)).replace("\n", " ")
    for value in objects(file, "messages.item"):
        message = _message(Fields(value, f"{file}", _PROGRAM).named("id"), header)
        if message is not None:
            yield _chat(header), message


def _chat(header: dict[str, str]) -> str:
    """Return the name of the channel. A thread's channel is exported as the thread's category."""
    return header.get("channel.category", "") if _thread(header) else header.get("channel.name", "")


def _thread(header: dict[str, str]) -> str:
    is_thread = "Thread" in header.get("channel.type", "") and header.get("channel.category")
    return header.get("channel.name", "") if is_thread else ""


def _message(fields: Fields, header: dict[str, str]) -> Message | None:
    if fields.text("type") not in _SPOKEN:
        return None
    author, reference, original = (fields.child(key) for key in ("author", "reference", "forwardedMessage"))
    if author is None:
        raise fields.refuse("author", "an object")
    if "content" in fields and fields.raw("content") is None:
        raise fields.refuse("content", "a text")
    content = _text(fields, fields)
    text = content or (_text(original, fields) if original is not None else "")
    sender = _name(author)
    if not text or not sender:
        return None
    return Message(
        id=fields.key("id"),
        time=fields.date("timestamp"),
        sender=sender,
        text=text,
        reply_to=(reference.key("messageId") if reference is not None and content else "") or None,
        thread=_thread(header),
        forwarded=not content,
        bot=author.flag("isBot"),
    )


def _text(fields: Fields, message: Fields) -> str:
    names = {person.key("id"): _name(person) for person in message.children("mentions")}
    text = _MENTION.sub(lambda match: f"@{names.get(match[1], match[1])}", fields.text("content"))
    return clean_text(_EMOJI.sub(r"\1", text))


def _name(person: Fields) -> str:
    return clean_name(person.text("nickname")) or clean_name(person.text("name"))
