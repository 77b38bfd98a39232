"""Exports with values of wrong types anywhere: they are read, or refused with a LoraFtError."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.data.chats.formats import Choice, read_chats

TELEGRAM = {
    "name": "Garden",
    "type": "private_supergroup",
    "id": 7,
    "messages": [
        {"id": 1, "type": "service", "date_unixtime": "17", "action": "topic_created", "title": "Goats", "text": ""},
        {
            "id": 2,
            "type": "message",
            "date": "2023-11-20T09:20:00",
            "date_unixtime": "1700472000",
            "from": "Ana",
            "from_id": "user2",
            "text": ["hi ", {"type": "bold", "text": "you"}],
            "text_entities": [{"text": "hi"}],
            "reply_to_message_id": 1,
            "forwarded_from": "News",
            "via_bot": "@gif",
        },
        {"id": 3, "type": "message", "date": "2023-11-20T09:20:00", "from": "Ben", "text": "yes"},
    ],
}
ACCOUNT = {"about": "", "chats": {"about": "", "list": [TELEGRAM]}, "left_chats": {"list": [TELEGRAM]}}
RICH = [{"type": "text", "text": "x"}, {"type": "user", "user_id": "U1"}, {"type": "emoji", "name": "y"}]
SLACK = [
    {"type": "message", "ts": "1.5", "user": "U1", "text": "<@U2>", "thread_ts": "1.5", "user_profile": {"name": "a"}},
    {
        "type": "message",
        "ts": "2.5",
        "user": "U2",
        "text": "",
        "blocks": [
            {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": RICH}]},
            {"type": "section", "text": {"type": "mrkdwn", "text": "z"}, "fields": []},
            {"type": "context", "elements": [{"type": "plain_text", "text": "z"}]},
        ],
    },
    {
        "type": "message",
        "ts": "3.5",
        "subtype": "bot_message",
        "username": "B",
        "bot_id": "B1",
        "attachments": [{"text": "z", "is_share": True}],
    },
]
DISCORD = {
    "guild": {"id": "1", "name": "G"},
    "channel": {"id": "2", "type": "GuildPublicThread", "category": "c", "name": "general"},
    "messages": [
        {
            "id": "1",
            "type": "Default",
            "timestamp": "2023-11-20T09:01:00+01:00",
            "content": "hello <@93>",
            "author": {"id": "93", "name": "ana", "nickname": "Ana", "isBot": False},
            "mentions": [{"id": "93", "name": "ana", "nickname": "Ana"}],
            "reference": {"messageId": "0"},
            "forwardedMessage": {"content": "old"},
        },
    ],
}
MESSENGER = {
    "participants": [{"name": "A"}],
    "title": "x",
    "thread_path": "inbox/x",
    "messages": [{"sender_name": "A", "timestamp_ms": 5000, "content": "x", "is_unsent": False, "type": "Generic"}],
}
SIGNAL = {"date": "2024-01-02T03:04:05", "sender": "A", "body": "x  ", "quote": "", "deleted": False, "call": False}
BACKUP = [
    {"version": "1", "backupTimeMs": "1"},
    {"recipient": {"id": "2", "contact": {"profileGivenName": "A", "nickname": {"given": "a"}, "e164": "49"}}},
    {"recipient": {"id": "3", "group": {"snapshot": {"title": {"title": "G"}}}}},
    {"chat": {"id": "7", "recipientId": "3"}},
    {
        "chatItem": {
            "chatId": "7",
            "authorId": "2",
            "dateSent": "5000",
            "standardMessage": {"text": {"body": "x"}, "quote": {"targetSentTimestamp": "4000"}},
        }
    },
]
EXAMPLES: dict[str, Any] = {
    "telegram": TELEGRAM,
    "telegram account": ACCOUNT,
    "slack": SLACK,
    "slack users": SLACK,
    "discord": DISCORD,
    "slack dump": {"channel_id": "C1", "name": "x", "messages": [{**SLACK[0], "slackdump_thread_replies": SLACK}]},
    "messenger": MESSENGER,
    "signal": [SIGNAL, SIGNAL],
    "signal backup": BACKUP,
}
WRONG = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        2**62,
        1e300,
        "",
        "x",
        "1",
        "nan",
        "\ud83d",
        "\x1b[31m",
        [],
        [1],
        [[]],
        {},
        {"text": []},
        ["x", None],
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a path."""
    if not path:
        return new
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return whole


def write(folder: Path, example: str, content: Any) -> Path:
    if example.startswith("signal"):
        file = folder / "data.json"
        rows = content if isinstance(content, list) else [content]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return file
    if example == "slack users":
        (folder / "users.json").write_text(json.dumps(content), encoding="utf-8")
        content = SLACK
    file = folder / "2024-01-01.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder if example == "slack users" else file


@pytest.mark.parametrize("example", EXAMPLES)
@given(data=st.data())
def test_wrong_values_raise_only_our_errors(example: str, data: st.DataObject) -> None:
    content = EXAMPLES[example]
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(content))))
        content = changed(content, path, data.draw(WRONG))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(LoraFtError):
        file = write(Path(folder), example, content)
        kind = "auto" if data.draw(st.booleans()) else example.split()[0]
        chats = read_chats(file, kind, choice=Choice(forwarded=True, bots=True))
        for chat, messages in chats.items():
            assert all(
                type(message.text) is str and message.text and message.sender and message.id is not None
                for message in messages
            ), chat


WORDS = [
    "[LINE] Chat history with A",
    "2023/11/20(Mon)",
    "Mon, 11/20/2023",
    "09:00\tA\thello",
    "09:00 A hello",
    "\t",
    '"x',
    "A 님과 카카오톡 대화",
    "2023년 11월 20일 오전 9:00, A : x",
    "[A] [오전 9:00] x",
    "------- 2023년 11월 20일 월요일 -------",
    "[2024-01-02 03:04:05] A: x  ",
    "> x",
    "(- A: y -)",
    62 * "=",
    "Guild: G",
    "Channel: c",
    "[20-Nov-23 09:00 AM] a",
    "{Attachments}",
    "AuthorID,Author,Date,Content",
    '"1","a","20-Nov-23 09:00 AM","x"',
    "Date,User,Message",
    "2023-11-20 09:00:00,A,x",
    "99:99",
    "2023년 99월 99일",
    "<html>",
    '<div class="page_wrap">',
    "<div",
    ">",
    "&#0;",
    "\x1b",
    '<div class="message default" id="message1"><div class="body">',
    '<div class="date details" title="x">',
    "</div>",
    '<div class="from_name">A</div>',
    '<div class="text">x</div>',
    "\u200f",
    "\ufeff",
    "é",
    "",
    " ",
]
TEXTS = ["auto", "discord", "signal", "line", "kakaotalk", "telegram", "slack", "messenger"]


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from(["", "\n", "\r\n"]), st.sampled_from(TEXTS))
def test_wrong_texts_raise_only_our_errors(words: list[str], end: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(LoraFtError):
        file = Path(folder) / "chat.txt"
        file.write_text(end.join(words), encoding="utf-8", newline="")
        read_chats(file, kind)


@given(
    st.binary(max_size=60),
    st.sampled_from(["", "PK\x03\x04", "[", "{", '{"messages": [', "<html>"]),
    st.sampled_from(TEXTS),
)
def test_wrong_bytes_raise_only_our_errors(content: bytes, start: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(LoraFtError):
        file = Path(folder) / "chat"
        file.write_bytes(start.encode() + content)
        read_chats(file, kind)


@pytest.mark.parametrize("damage", ["encrypted", "cut", "flipped"])
@pytest.mark.parametrize("kind", ["auto", "slack", "messenger", "signal", "telegram"])
def test_a_damaged_zip_is_refused(tmp_path: Path, damage: str, kind: str) -> None:
    names = {"slack": "users.json", "messenger": "message_1.json", "signal": "chat.md", "telegram": "result.json"}
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(names.get(kind, "result.json"), json.dumps(TELEGRAM))
        archive.writestr("2024-01-01.json", json.dumps(SLACK))
    content = bytearray(file.read_bytes())
    if damage == "encrypted":
        for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = -1
            while (start := content.find(mark, start + 1)) >= 0:
                content[start + place] |= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[60:80] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(LoraFtError):
        read_chats(file, kind)
