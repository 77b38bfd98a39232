"""Telegram Desktop's result.json, of one chat or of a whole account."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import ijson
from ijson.common import ObjectBuilder

from export.errors import LoraFtError
from lora_ft.chats.message import Message, clean_name, clean_text
from lora_ft.chats.stream import File, objects, read, top_keys

_ACCOUNT = ("chats.list.item", "left_chats.list.item")  # what a chat is in the export of an account


def read_telegram(file: File) -> Iterator[tuple[str, Message]]:
    """(chat, message) of every message with a text; service messages are none.

    Raises:
        LoraFtError: the file is damaged, or a message has no date.
    """
    if _is_account(file):
        found = read(file, _of_account)
    else:
        name = clean_text(str(next(objects(file, "name"), "") or ""))
        found = ((name, value) for value in objects(file, "messages.item"))
    for chat, value in found:
        message = _message(value, file)
        if message is not None:
            yield chat, message


def _is_account(file: File) -> bool:
    """Whether the top of the file has the key `chats` before `messages`."""
    found = next((key for key in read(file, top_keys) if key in ("chats", "left_chats", "messages")), "messages")
    return found != "messages"


def _of_account(content: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """(chat, message as it stands) of an account; chats of the same name are told apart by a number."""
    seen: Counter[str] = Counter()
    chat = ""
    messages = tuple(f"{prefix}.messages.item" for prefix in _ACCOUNT)
    names = tuple(f"{prefix}.name" for prefix in _ACCOUNT)
    builder: ObjectBuilder | None = None
    inside = ""
    for prefix, event, value in ijson.parse(content, use_float=True):
        if builder is not None:
            builder.event(event, value)
            if event == "end_map" and prefix == inside:
                yield chat, builder.value
                builder = None
        elif event == "start_map" and prefix in messages:
            builder, inside = ObjectBuilder(), prefix
            builder.event(event, value)
        elif event == "start_map" and prefix in _ACCOUNT:
            chat = "Saved Messages"  # the one chat without a name
        elif prefix in names:
            name = clean_text(str(value or "Deleted Account"))
            seen[name] += 1
            chat = name if seen[name] == 1 else f"{name} #{seen[name]}"


def _message(value: Any, file: File) -> Message | None:
    if not isinstance(value, dict) or value.get("type") != "message":
        return None
    text = clean_text(_flat(value.get("text") or value.get("text_entities") or ""))
    sender = clean_name(str(value.get("from") or value.get("from_id") or ""))
    if not text or not sender:
        return None
    reply = value.get("reply_to_message_id")
    elsewhere = "reply_to_peer_id" in value  # the id is then one of another chat
    return Message(
        id=str(value.get("id")),
        time=_time(value, file),
        sender=sender,
        text=text,
        reply_to=None if reply is None or elsewhere else str(reply),
    )


def _flat(text: Any) -> str:
    """A text, or the texts of its entities one after the other."""
    if not isinstance(text, list):
        return str(text)
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in text)


def _time(value: dict[str, Any], file: File) -> float:
    try:
        if "date_unixtime" in value:
            return float(value["date_unixtime"])
        return datetime.datetime.fromisoformat(value["date"]).replace(tzinfo=datetime.UTC).timestamp()
    except (KeyError, TypeError, ValueError) as error:
        raise LoraFtError(
            f"{file}, message {value.get('id')}, has no date that can be read ({value.get('date')!r})",
            "export it again",
        ) from error
