"""Heads of WhatsApp messages as several versions write them."""

from __future__ import annotations

from pathlib import Path

from lora_ft.chats.formats import read_chats


def check_narrow_spaces_and_halves(folder: Path, scratch: Path) -> None:
    for name in ("en_ca.txt", "ios_de_12h.txt"):
        assert any(read_chats(folder / name).values())
