"""Exports of Telegram Desktop: invalid escapes, forwards, topics, HTML, whole folders."""

from __future__ import annotations

from pathlib import Path

from lora_ft.data.chats.formats import Choice, read_chats
from lora_ft.data.chats.message import Message


def _texts(messages: list[Message]) -> list[str]:
    return [f"{message.sender}: {message.text}" for message in messages]


def check_invalid_escapes_are_read(folder: Path, scratch: Path) -> None:
    texts = _texts(read_chats(folder / "control.json")["Garden"])
    assert texts == ["Ana: morning all", "Ben: copied from a PDF \x0c yes", "Ana: ok"]


def check_forwards_and_inline_bots_are_left_out(folder: Path, scratch: Path) -> None:
    file = folder / "forwarded.json"
    expected = ["Ana: morning all", "Ana: lol", "Combot: Welcome, Dora! Please read the rules.", "Dora: hi"]
    assert _texts(read_chats(file)["Garden"]) == expected
    assert _texts(read_chats(file, choice=Choice(leave_out=["Combot"]))["Garden"]) == [
        expected[0],
        expected[1],
        expected[3],
    ]
    assert len(read_chats(file, choice=Choice(forwarded=True))["Garden"]) == 6
    assert len(read_chats(file, choice=Choice(forwarded=True, bots=True))["Garden"]) == 7


def check_topics_are_conversations(folder: Path, scratch: Path) -> None:
    chats = read_chats(folder / "forum.json")
    assert {chat: [message.text for message in messages] for chat, messages in chats.items()} == {
        "Garden › Goats": ["goat 0", "goat 2", "goat 4", "goat 6", "goat answer to 20"],
        "Garden › Money": ["money 1", "money 3", "money 5", "money 7"],
    }


def check_kinds_and_ids_are_as_before(folder: Path, scratch: Path) -> None:
    kinds = ["Ana: morning all", "Ben: ok", "user120: from a deleted account", "Ana: and again"]
    assert _texts(read_chats(folder / "kinds.json")["Garden"]) == kinds
    migrated = read_chats(folder / "migrated.json")["Garden"]
    assert [message.text for message in migrated[:3]] == ["old one", "old two", "morning all"]
    assert migrated[1].reply_to == migrated[0].id == "-999999000"


def check_html_pages_and_folders_are_read(folder: Path, scratch: Path) -> None:
    for name in ("messages.html", "ChatExport_2023-11-20"):
        (messages,) = read_chats(folder / name).values()
        assert _texts(messages) == ["Ana: morning all"] and messages[0].time == 1700467200.0  # 9:00 at UTC+01:00
