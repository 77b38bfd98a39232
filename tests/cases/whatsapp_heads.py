"""Heads of WhatsApp messages as several versions write them."""

from __future__ import annotations

import datetime
from pathlib import Path

from lora_ft.data.chats.formats import read_chats


def _read(file: Path) -> list[tuple[str, str, str]]:
    (messages,) = read_chats(file).values()
    times = [datetime.datetime.fromtimestamp(message.time, datetime.UTC) for message in messages]
    return [
        (f"{time:%Y-%m-%d %H:%M:%S}", message.sender, message.text)
        for time, message in zip(times, messages, strict=True)
    ]


def check_narrow_spaces_and_halves(folder: Path, scratch: Path) -> None:
    assert _read(folder / "en_ca.txt") == [("2023-12-20 17:46:00", "Ana", "one"), ("2023-12-20 17:47:00", "Ben", "two")]
    assert _read(folder / "ios_de_12h.txt") == [
        ("2023-08-05 17:52:02", "Ana", "one"),
        ("2023-08-05 17:53:02", "Ben", "two"),
        ("2023-08-06 17:53:02", "Ben", "three"),
    ]


def check_senders_without_a_blank(folder: Path, scratch: Path) -> None:
    assert [(sender, text) for _, sender, text in _read(folder / "no_space.txt")] == [
        ("Ana", "hey"),
        ("Ben", "hi"),
        ("Ana", "how are you"),
        ("Ben", "fine: thanks"),
    ]


def check_old_ios_and_copies_from_the_web(folder: Path, scratch: Path) -> None:
    assert _read(folder / "old_ios.txt") == [
        ("2019-08-21 23:28:51", "Ana", "hello"),
        ("2019-08-21 23:29:10", "Ben", "hi"),
    ]
    assert _read(folder / "web_copy.txt") == [
        ("2021-05-15 00:29:00", "Ana", "hello"),
        ("2021-05-15 00:30:00", "Ben", "so nice"),
    ]
