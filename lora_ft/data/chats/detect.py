"""Detection of an export's format from its content. The name of the export decides nothing.

An export of a known but unsupported program raises an error with the program's name, so that the cause is clear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats import discord_text, kakaotalk, line, messenger, signal, telegram_html
from lora_ft.data.chats.places import File, files_below, is_zip, opened, root_of
from lora_ft.data.chats.stream import objects, top_keys
from lora_ft.data.chats.telegram import telegram_repair
from lora_ft.data.chats.whatsapp_files import is_whatsapp
from lora_ft.data.readers import READERS

FORMATS = ("telegram", "whatsapp", "slack", "discord", "messenger", "signal", "line", "kakaotalk")
_START = 1 << 16  # bytes inspected at the beginning of a file
_ANY_NAME = re.compile(r".*")
# Top-level JSON keys, and their format in `FORMATS` or, after "!", the name of an unsupported program.
_TOP_KEYS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"guild", "channel"}), "discord"),
    (frozenset({"chats"}), "telegram"),
    (frozenset({"left_chats"}), "telegram"),
    (frozenset({"channel_id", "messages"}), "slack"),
    (frozenset({"userId", "exportDate", "conversations"}), "!Skype or Teams"),
    (frozenset({"@odata.context", "value"}), "!Microsoft Teams"),
    (frozenset({"room_name", "messages"}), "!Matrix (Element)"),
    (frozenset({"Received Saved Chat History"}), "!Snapchat"),
    (frozenset({"conversations"}), "!Hangouts"),
    (frozenset({"chatlab", "messages"}), "!ChatLab"),
)
# Keys of the first message, used if the top-level keys are not conclusive.
_MESSAGE_KEYS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"sender_name"}), "messenger"),
    (frozenset({"senderName"}), "messenger"),
    (frozenset({"event_id"}), "!Matrix (Element)"),
    (frozenset({"creator"}), "!Google Chat"),
    (frozenset({"role", "content"}), "!a chat model"),
)
# Rows may have such columns too, so their values decide.
_TELEGRAM_TYPES = ("message", "service", "unsupported")
_SLACK_TIME = re.compile(r"\d+\.\d+")
_PAGES = (
    (re.compile(rb"chatlog__"), "!DiscordChatExporter's HTML", "export the channel as JSON"),
    (re.compile(rb"_a6-g|uiBoxWhite|pam _3-95"), "!Messenger's or Instagram's HTML", "download the messages as JSON"),
    (re.compile(rb"iMessage|imessage", re.IGNORECASE), "!iMessage", ""),
)
_TEXTS = (
    (re.compile(r"[A-Z][a-z]{2} \d{2}, \d{4} {1,2}\d{1,2}:\d{2}:\d{2} [AP]M\b"), "!iMessage (imessage-exporter)"),
    (re.compile(r"\d{2}:\d{2}:\d{2}\s+From .{1,80} to .{1,80}:"), "!Zoom"),
    (re.compile(r"Conversation: .{1,200}\n\nFrom: "), "!Signal by sigtop"),
    (
        re.compile(r"<\?xml[^>]*>\s*(?:<!--[\s\S]{0,2000}?-->\s*)?(?:<\?xml-stylesheet[^>]*>\s*)?<smses"),
        "!SMS Backup & Restore",
    ),
)
_REMEDIES = {"!Signal by sigtop": "export it with signal-export", "!Skype or Teams": "its messages cannot be read yet"}
_CLOCK_LINE = re.compile(r"\W{0,6}\d{1,4}[^\w\n]{1,4}\d{1,2}[^\w\n]{1,4}\d{1,4}[^\n]{0,30}\d[:.]\d\d", re.MULTILINE)


def find_format(file: Path) -> str:
    """Return the format of an export, one of `FORMATS`.

    Raises:
        UsageError: The program is unsupported or unknown.
        LoraFtError: The file is damaged.
    """
    if file.is_dir() or is_zip(file):
        return _in_folder(file, root_of(file))
    return _of_file(file, file)


def _in_folder(file: Path, root: File) -> str:
    """Return the format of a folder or zip file, from the names and content of its files."""
    names = {entry.name for entry in root.iterdir()}
    entries = files_below(root, _ANY_NAME)
    all_names = {entry.name for entry in entries}
    if is_whatsapp(all_names):  # first, because a chat's attachments may look like any other format
        return "whatsapp"
    if "result.json" in names or any(telegram_html.PAGE.fullmatch(name) for name in all_names):
        return "telegram"
    if any(messenger.PAGE.fullmatch(name) for name in all_names):
        return "messenger"
    if {"chat.md", "main.jsonl"} & all_names:
        return "signal"
    if "data.json" in all_names and all(
        _of_file(entry, file) == "signal" for entry in entries if entry.name == "data.json"
    ):
        return "signal"
    if {"users.json", "channels.json", "dms.json"} & names or any(
        re.fullmatch(r"\d{4}-\d\d-\d\d\.json", name) for name in all_names
    ):
        return "slack"
    texts = [entry for entry in entries if entry.name.lower().endswith(".txt")]
    if texts and not file.is_dir():
        return "whatsapp"
    chats = [entry for entry in entries if entry.name.lower().endswith(".json") and messenger.is_messenger(entry)]
    if chats:
        return "messenger"
    raise _unknown(file)


def _of_file(file: File, shown: Path) -> str:
    """Return the format of a file from its beginning."""
    with opened(file) as content:
        start = content.read(_START)
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unknown(shown)
    text = start.decode("utf-8-sig", "replace")
    if text.lstrip()[:1] in ("{", "[") and not re.match(r"\s*\[[^\n]{0,200}\] ", text):
        return "signal" if signal.is_signal(text) else _of_json(file, shown)
    if b"<html" in start[:2000].lower() or b"<!doctype html" in start[:2000].lower():
        return _of_page(start, shown)
    for pattern, program in _TEXTS:
        if pattern.match(text):
            raise _unread(shown, program)
    if discord_text.is_discord_text(file) or discord_text.is_discord_table(file):
        return "discord"
    for name, begins_like in (
        ("line", line.is_line),
        ("kakaotalk", kakaotalk.is_kakaotalk),
        ("signal", signal.is_signal),
    ):
        if begins_like(text):
            return name
    if _CLOCK_LINE.search(text) or file.name.lower().endswith(".txt"):
        return "whatsapp"
    raise _unknown(shown)


def _of_page(start: bytes, shown: Path) -> str:
    if telegram_html.is_telegram_html(start):
        return "telegram"
    for pattern, program, remedy in _PAGES:
        if pattern.search(start):
            raise _unread(shown, program, remedy)
    raise _unknown(shown)


def _of_json(file: File, shown: Path) -> str:
    """Return the format of a JSON file from its first keys or, if they are not conclusive, from its first message."""
    keys: set[str] = set()
    program: str | None = None
    for key in top_keys(file, telegram_repair):
        keys.add(key)
        program = _matching(keys, _TOP_KEYS)
        if program is not None or key == "messages":
            break
    if program is None:
        first = _first(file, "messages.item" if "messages" in keys else "item")
        program = _matching(first.keys(), _MESSAGE_KEYS)
        if program is None and first.get("type") == "message" and _SLACK_TIME.fullmatch(str(first.get("ts"))):
            program = "slack"
        elif program is None and "messages" in keys:
            if not first:
                program = _matching(set(top_keys(file, telegram_repair)), _TOP_KEYS) or "telegram"
            elif "id" in first and first.get("type") in _TELEGRAM_TYPES:
                program = "telegram"
    if program is None:
        raise _unknown(shown)
    if program.startswith("!"):
        raise _unread(shown, program)
    return program


def _first(file: File, prefix: str) -> Mapping[str, Any]:
    first = next(objects(file, prefix, telegram_repair), None)
    return first if isinstance(first, dict) else {}


def _matching(keys: Any, table: tuple[tuple[frozenset[str], str], ...]) -> str | None:
    return next((program for needed, program in table if needed <= set(keys)), None)


def _unread(file: Path, program: str, remedy: str = "") -> LoraFtError:
    name = program.removeprefix("!")
    remedy = remedy or _REMEDIES.get(program, f"use an export of {', '.join(FORMATS)}")
    return UsageError(f"{file} is an export of {name}, which is not supported", remedy)


def _unknown(file: Path) -> LoraFtError:
    return UsageError(
        f"{file} is not a known export of a chat",
        f"use an export of {', '.join(FORMATS)} (data.chat.format names one), or rows as {', '.join(READERS)}",
    )
