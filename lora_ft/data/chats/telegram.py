r"""Telegram Desktop's result.json, of one chat or of a whole account.

Telegram Desktop writes some JSON that is not valid: control characters as `\x0C`, and ids of mentions without quotes.
Both are put right before the file is parsed.

The messages of a forum's topics stand mixed in one list. A topic begins with a service message (`topic_created`), and a
message of a topic answers that message or another of the topic, so the chain of answers tells its topic.
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

_LISTS = ("chats.list.item", "left_chats.list.item")  # where chats stand in the export of an account
_HEADER = ("name", "type", "id")
_BARE_ID = re.compile(rb'^([ \t]*"[a-z_]+": )((?:user|chat|channel)\d+)(,?\r?)$', re.MULTILINE)
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|[\s\S])")
_HALF_ESCAPES = (b"", b"x", *(b"x%X" % digit for digit in range(16)), *(b"x%x" % digit for digit in range(10, 16)))
_LONGEST_ID_LINE = 200  # bytes
_NUMBER = re.compile(r"-?\d{1,18}")


def read_telegram(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) of every message with a text.

    Raises:
        LoraFtError: the file is damaged, or a message is not as Telegram writes it.
    """
    chats = _account(file) if _is_account(file) else _single(file)
    for chat, value in chats:
        message = chat.read(Fields(value, f"{file}", "Telegram Desktop").named("id"))
        if message is not None:
            yield chat.name, message


def telegram_repair() -> Repair:
    """Return a function that puts Telegram's invalid JSON right, chunk by chunk, as of `stream.objects`."""
    rest = b""

    def repair(chunk: bytes) -> bytes:
        nonlocal rest
        data = rest + chunk
        end = _whole(data) if chunk else len(data)
        data, rest = data[:end], data[end:]
        if b"\\x" in data:
            data = _ESCAPE.sub(lambda found: b"\\u00" + found[1] if found[1] else found[0], data)
        if b": user" in data or b": cha" in data:
            data = _BARE_ID.sub(rb'\1"\2"\3', data)
        return data

    return repair


def _whole(data: bytes) -> int:
    """Return how many bytes can be repaired before the next chunk is known: no half escape, no short half line."""
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
    """Return whether the top of the file has the key `chats` before `messages`."""
    found = (key for key in top_keys(file, telegram_repair) if key in ("chats", "left_chats", "messages"))
    return next(found, "messages") != "messages"


def _single(file: File) -> Iterator[tuple[_Chat, Any]]:
    """Yield (chat, message as it stands) of the export of one chat, whose keys may be in any order."""
    header: dict[str, Any] = {}
    for key, value in walk(file, _HEADER, telegram_repair):
        header[key] = value
        if {"type", "id"} <= header.keys():  # the name comes before one of them, if there is one
            break
    chat = _Chat(Fields(header, f"{file}", "Telegram Desktop"), Counter())
    for value in objects(file, "messages.item", telegram_repair):  # twice as fast as `walk`
        yield chat, value


def _account(file: File) -> Iterator[tuple[_Chat, Any]]:
    """Yield (chat, message as it stands) of the export of an account.

    Raises:
        LoraFtError: the name of a chat stands after its messages.
    """
    seen: Counter[str] = Counter()
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
            chat = chat or _Chat(Fields(header, f"{file}", "Telegram Desktop"), seen)
            yield chat, value


class _Chat:
    """A chat while its messages are read.

    Args:
        header: its name, type and id.
        seen: how many chats of each name came before; chats of the same name are told apart by a number.
    """

    def __init__(self, header: Fields, seen: Counter[str]) -> None:
        kind = header.text("type")
        name = clean_text(header.text("name")) or _nameless(header, kind)
        seen[name] += 1
        self.name = name if seen[name] == 1 else f"{name} #{seen[name]}"
        self._bot = f"user{header.key('id')}" if kind == "bot_chat" else None
        self._topics = Topics()

    def read(self, fields: Fields) -> Message | None:
        """Return a message, or None where it is none of a person or has no text."""
        kind, number = fields.text("type"), fields.key("id")
        elsewhere = "reply_to_peer_id" in fields  # the id is then one of another chat
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
    """The topics of a forum, and which message stands in which. A chat without topics remembers no messages."""

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}
        self._topics: dict[str, str] = {}  # message -> its topic, "" for the forum's general one
        self._first: int | None = None  # message of the chat
        self._forum_from: int | None = None  # the first topic

    def begin(self, number: str, title: str) -> None:
        """Note a topic by the message that begins it."""
        title = clean_text(title).replace("\n", " ") or f"#{number}"
        self._titles[number] = f"{title} #{number}" if title in self._titles.values() else title
        if self._forum_from is None:
            self._forum_from = _number(number)

    def is_root(self, number: str) -> bool:
        """Return whether a message is the beginning of a topic, which has no text."""
        return number in self._titles

    def find(self, number: str, reply: str) -> str:
        """Return the topic of a message, "" for the general one and where there are no topics.

        A message that answers one which the export lacks stands in a conversation of its own, as its topic is unknown.
        """
        if self._first is None:
            self._first = _number(number)
        if not self._titles:
            return ""
        topic = self._topics[number] = self._topic(reply) if reply else ""
        return topic

    def _topic(self, reply: str) -> str:
        known = self._titles.get(reply, self._topics.get(reply))
        if known is not None:
            return known
        place = _number(reply)
        older = None not in (place, self._first, self._forum_from) and self._first <= place < self._forum_from  # type: ignore[operator]
        return "" if older else f"#{reply}"


def _number(number: str) -> int | None:
    return int(number) if _NUMBER.fullmatch(number) else None


def _text(fields: Fields, key: str) -> str:
    """Return a text, or the texts of its parts one after the other."""
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
