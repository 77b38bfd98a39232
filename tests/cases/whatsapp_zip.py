"""Zip files of WhatsApp: a chat with a text attached, and a capital ending."""

from __future__ import annotations

from pathlib import Path

from lora_ft.data.chats.formats import read_chats


def check_zip_files_are_read(folder: Path, scratch: Path) -> None:
    for name in ("android.zip", "UPPER.ZIP"):
        ((chat, messages),) = read_chats(folder / name).items()
        assert chat == name.partition(".")[0]
        assert [(message.sender, message.text) for message in messages] == [("Ana", "hello"), ("Ana", "thanks")]
