"""Signal: signal-export's folders, and Signal's own plain text export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.signal import read_signal

TIME = 1704164645.0  # 2024-01-02T03:04:05
MARKDOWN = """[2024-01-02 03:04:05] Ana: hello  

[2024-01-02 03:04:05] Me: 

> hello
> there

yes: of course
more  
(- Ana: 👍, Ben: 😀 -)

[2024-01-02 03:04:05] Ana: look  ![a.jpg](./media/a.jpg)  

[2024-01-02 03:04:05] Ana: Incoming voice call (accepted, 3m 2s)  

[2024-01-02 03:04:05] Ana: (This message was deleted)

[2024-01-02 03:04:05] Ana:   
(( 😂 ))

"""  # noqa: W291  (two blanks end a line of Markdown)


def message(body: str, sender: str = "Ana", **more: Any) -> str:
    return json.dumps({"date": "2024-01-02T03:04:05", "sender": sender, "body": f"{body}  ", "quote": "", **more})


def test_a_folder_of_signal_export_is_read(tmp_path: Path) -> None:
    lines = [message("hello"), message("yes", "Me", quote="\n\n> hello\n\n"), message("", sticker="x")]
    notices = [
        message("gone", deleted=True),
        message("Missed call", call=True),
        message("Outgoing video call (unanswered)"),
    ]
    for name in ("Garden", "Ben"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat.md").write_text(MARKDOWN)
    (tmp_path / "Garden" / "data.json").write_text("\n".join([*lines, *notices, ""]))
    expected = [Message("1", TIME, "Ana", "hello"), Message("2", TIME, "Me", "yes")]
    assert [message for chat, message in read_signal(tmp_path) if chat == "Garden"] == expected
    assert [(message.sender, message.text) for chat, message in read_signal(tmp_path) if chat == "Ben"] == [
        ("Ana", "hello"),
        ("Me", "yes: of course\nmore"),
        ("Ana", "look"),
    ]
    assert [message for _, message in read_signal(tmp_path / "Garden" / "data.json")] == expected


def test_the_plain_text_export_of_signal_is_read(tmp_path: Path) -> None:
    def item(stamp: int, chat: str, author: str, **content: Any) -> dict[str, Any]:
        return {"chatItem": {"chatId": chat, "authorId": author, "dateSent": f"{stamp}000", "incoming": {}, **content}}

    standard = {"standardMessage": {"text": {"body": "hello"}}}
    frames: list[dict[str, Any]] = [
        {"version": "1", "backupTimeMs": "1704164645000"},
        {"account": {}},
        {"recipient": {"id": "1", "self": {}}},
        {"recipient": {"id": "2", "contact": {"profileGivenName": "Ana", "profileFamilyName": "Oak", "e164": "49"}}},
        {"recipient": {"id": "3", "group": {"snapshot": {"title": {"title": "Garden"}}}}},
        {"chat": {"id": "7", "recipientId": "3"}},
        {"chat": {"id": "8", "recipientId": "2"}},
        item(5, "7", "2", **standard),
        item(6, "7", "1", standardMessage={"text": {"body": "yes"}, "quote": {"targetSentTimestamp": "5000"}}),
        item(7, "8", "2", stickerMessage={}),
        item(8, "8", "2", remoteDeletedMessage={}),
        item(9, "8", "2", **standard),
    ]
    file = tmp_path / "main.jsonl"
    file.write_text("\n".join(map(json.dumps, frames)))
    expected = [
        ("Garden", Message("5000", 5.0, "Ana Oak", "hello")),
        ("Garden", Message("6000", 6.0, "Me", "yes", "5000")),
        ("Ana Oak", Message("9000", 9.0, "Ana Oak", "hello")),
    ]
    assert list(read_signal(file)) == list(read_signal(tmp_path)) == expected
    file.write_text("\n".join(map(json.dumps, [frames[0], item(5, "7", "2", **standard)])))
    with pytest.raises(LoraFtError, match=r"main\.jsonl:2 is a message of an unknown chat or author"):
        list(read_signal(file))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"date": 5, "sender": "A", "body": "x"}', r"data\.json:1, has no date that can be read"),
        ('{"date": "2024-01-01", "sender": ["A"], "body": "x"}', r"data\.json:1: sender is a list, not a text"),
        ('{"date": "2024-01-01", "sender"', r"data\.json:1 is not JSON"),
        (f'{{"date": {4301 * "1"}}}', r"data\.json:1 has a number of 4,301 digits"),
    ],
)
def test_malformed_line_is_refused_by_number(tmp_path: Path, line: str, part: str) -> None:
    (tmp_path / "data.json").write_text(line)
    with pytest.raises(LoraFtError, match=part):
        list(read_signal(tmp_path / "data.json"))


def test_a_folder_without_chats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no data\.json, chat\.md or main\.jsonl of Signal"):
        list(read_signal(tmp_path))
