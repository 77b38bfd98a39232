r"""Reader of Telegram Desktop's result.json, of one chat or of a whole account.

Telegram Desktop writes some invalid JSON: control characters as `\x0C`, and ids of mentions without quotes. Both are
repaired before the file is parsed.

A forum's topics share one list of messages. A topic begins with a service message (`topic_created`). Every message of
the topic answers that message or another one of the topic, so following the replies leads to the topic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.stream import BEGIN, File, Repair, objects, top_keys, walk

_LISTS = ("chats.list.item", "left_chats.list.item")  # prefixes of chats in the export of an account
_HEADER = ("name", "type", "id")
_BARE_ID = re.compile(rb'^([ \t]*"[a-z_]+": )((?:user|chat|channel)\d+)(,?\r?)$', re.MULTILINE)
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|[\s\S])")
_HALF_ESCAPES = (b"", b"x", *(b"x%X" % digit for digit in range(16)), *(b"x%x" % digit for digit in range(10, 16)))
_LONGEST_ID_LINE = 200  # bytes; maximum length of a line with an unquoted id
_NUMBER = re.compile(r"-?\d{1,18}")


def read_telegram(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text.

    Raises:
        LoraFtError: The file is damaged, or a message differs from Telegram's format.
    """
    chats = _account(file) if _is_account(file) else _single(file)
    for chat, value in chats:
        message = chat.read(Fields(value, f"{file}", "Telegram Desktop").named("id"))
        if message is not None:
            yield chat.name, message


def telegram_repair() -> Repair:
    """Return a function that repairs Telegram's invalid JSON chunk by chunk. See `repair` of `stream.objects`."""
    pending = b""

    def repair(chunk: bytes) -> bytes:
        nonlocal pending
        data = pending + chunk
        end = _whole(data) if chunk else len(data)
        data, pending = data[:end], data[end:]
        if b"\\x" in data:
            data = _ESCAPE.sub(lambda match: b"\\u00" + match[1] if match[1] else match[0], data)
        if b": user" in data or b": cha" in data:
            data = _BARE_ID.sub(rb'\1"\2"\3', data)
        return data

    return repair


def _whole(data: bytes) -> int:
    """Return the number of bytes that can be repaired before the next chunk: no partial escape or short line."""
    line = data.rfind(b"\n") + 1
    if len(data) - line <= _LONGEST_ID_LINE:
        return line
    for half in _HALF_ESCAPES:
        if data.endswith(b"\\" + half):
            escape = len(data) - len(half) - 1
            slashes = escape + 1 - len(data[: escape + 1].rstrip(b"\\"))
            return escape if slashes % 2 else len(data)
    return len(data)


def _is_account(file: File) -> bool:
    """Return whether the top-level key `chats` precedes `messages` in the file."""
    keys = (key for key in top_keys(file, telegram_repair) if key in ("chats", "left_chats", "messages"))
    return next(keys, "messages") != "messages"


def _single(file: File) -> Iterator[tuple[_Chat, Any]]:
    """Yield (chat, raw message) from the export of one chat, with keys in any order."""
    header: dict[str, Any] = {}
    for key, value in walk(file, _HEADER, telegram_repair):
        header[key] = value
        if {"type", "id"} <= header.keys():  # an optional name precedes one of them
            break
    chat = _Chat(Fields(header, f"{file}", "Telegram Desktop"), Counter())
    for value in objects(file, "messages.item", telegram_repair):  # twice as fast as `walk`
        yield chat, value


def _account(file: File) -> Iterator[tuple[_Chat, Any]]:
    """Yield (chat, raw message) from the export of an account.

    Raises:
        LoraFtError: The name of a chat follows its messages.
    """
    counts: Counter[str] = Counter()
    header: dict[str, Any] = {}
    chat: _Chat | None = None
    keys = {f"{place}.{key}": key for place in _LISTS for key in (*_HEADER, "messages.item")}
    for prefix, value in walk(file, keys, telegram_repair, begins=_LISTS):
        if value is BEGIN:
            header, chat = {}, None
        elif keys[prefix] != "messages.item":
            if chat is not None:
                raise LoraFtError(f"{file} has a chat's {keys[prefix]} after its messages", "export the account again")
            header[keys[prefix]] = value
        else:
            chat = chat or _Chat(Fields(header, f"{file}", "Telegram Desktop"), counts)
            yield chat, value


class _Chat:
    """Chat whose messages are being read.

    Args:
        header: Name, type and id of the chat.
        counts: Number of earlier chats by name. Chats of the same name are numbered to keep them apart.
    """

    def __init__(self, header: Fields, counts: Counter[str]) -> None:
        kind = header.text("type")
        name = clean_text(header.text("name")) or _nameless(header, kind)
        counts[name] += 1
        self.name = name if counts[name] == 1 else f"{name} #{counts[name]}"
        self._bot = f"user{header.key('id')}" if kind == "bot_chat" else None
        self._topics = Topics()

    def read(self, fields: Fields) -> Message | None:
        """Return a message, or None for a service message or a message without text."""
        kind, number = fields.text("type"), fields.key("id")
        elsewhere = "reply_to_peer_id" in fields  # the answered id then belongs to another chat
        reply = "" if elsewhere else fields.key("reply_to_message_id")
        if kind == "service" and fields.text("action") == "topic_created":
            self._topics.begin(number, fields.text("title"))
        if kind != "message":
            return None
        thread = self._topics.find(number, reply)
        text = clean_text(_text(fields, "text") or _text(fields, "text_entities"))
        sender = clean_name(fields.text("from")) or clean_name(fields.key("from_id"))
        if not text or not sender:
            return None
        return Message(
            id=number,
            time=fields.seconds("date_unixtime") if "date_unixtime" in fields else fields.date("date"),
            sender=sender,
            text=text,
            reply_to=None if not reply or self._topics.is_root(reply) else reply,
            thread=thread,
            forwarded=any(key in fields for key in ("forwarded_from", "forwarded_from_id", "saved_from")),
            bot="via_bot" in fields or fields.key("from_id") == self._bot,
        )


def _nameless(header: Fields, kind: str) -> str:
    if "name" in header:
        return "Deleted Account"
    return "Saved Messages" if kind == "saved_messages" or header.key("id") else ""


class Topics:
    """Topics of a forum, and the topic of each message. A chat without topics stores no messages."""

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}
        self._topics: dict[str, str] = {}  # topic by message id, "" for the forum's general topic
        self._first: int | None = None  # first message of the chat
        self._forum_from: int | None = None  # the first topic

    def begin(self, number: str, title: str) -> None:
        """Record a topic and the message that begins it."""
        title = clean_text(title).replace("\n", " ") or f"#{number}"
        self._titles[number] = f"{title} #{number}" if title in self._titles.values() else title
        if self._forum_from is None:
            self._forum_from = _number(number)

    def is_root(self, number: str) -> bool:
        """Return whether a message is the beginning of a topic, which is a message without text."""
        return number in self._titles

    def find(self, number: str, reply: str) -> str:
        """Return the topic of a message, or "" for the general topic and in a chat without topics.

        A reply to a message that is missing from the export has an unknown topic, so it gets its own conversation.
        """
        if self._first is None:
            self._first = _number(number)
        if not self._titles:
            return ""
        topic = self._topics[number] = self._topic(reply) if reply else ""
        return topic

    def _topic(self, reply: str) -> str:
        topic = self._titles.get(reply, self._topics.get(reply))
        if topic is not None:
            return topic
        place = _number(reply)
        older = None not in (place, self._first, self._forum_from) and self._first <= place < self._forum_from  # type: ignore[operator]
        return "" if older else f"#{reply}"


def _number(number: str) -> int | None:
    return int(number) if _NUMBER.fullmatch(number) else None


def _text(fields: Fields, key: str) -> str:
    """Return a text, or the concatenated texts of its parts."""
    if not isinstance(fields.raw(key), list):
        return fields.text(key)
    parts: list[str] = []
    for part in fields.values(key):
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict):
            parts.append(Fields(part, f"{fields.where}: {key}", "Telegram Desktop").text("text"))
        else:
            raise fields.refuse(key, "a text or a list of texts and entities")
    return "".join(parts)
