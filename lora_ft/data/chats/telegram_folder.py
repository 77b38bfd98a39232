"""Reader of all Telegram Desktop exports: result.json, HTML pages, a folder `ChatExport_…` or a zip file of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_ft.data.chats.message import Message
from lora_ft.data.chats.places import File, is_zip, opened, root_of
from lora_ft.data.chats.telegram import read_telegram
from lora_ft.data.chats.telegram_html import is_telegram_html, read_telegram_html


def read_telegram_export(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text. A folder with JSON and HTML is read as JSON.

    Raises:
        UsageError: A folder holds neither JSON nor HTML pages.
        LoraFtError: A file is damaged, or a message differs from Telegram's format.
    """
    if not file.is_dir() and not is_zip(file):
        return read_telegram_html(file) if _is_page(file) else read_telegram(file)
    root = root_of(file)
    exported = root / "result.json"
    return read_telegram(exported) if exported.is_file() else read_telegram_html(root)


def _is_page(file: File) -> bool:
    with opened(file) as content:
        start = content.read(1 << 16)
    return is_telegram_html(start) or start.lstrip()[:1] == b"<"
