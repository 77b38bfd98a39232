"""Reader of Signal's chats: folders of signal-export (chat.md, data.json) and Signal's own plain text (main.jsonl)."""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import parse_json
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, files_below, folder_name, is_zip, root_of, text_lines

FILES = re.compile(r"data\.json|chat\.md|main\.jsonl")
_HEAD = re.compile(r"\[(\d{4})-(\d{2})-(\d{2}) (\d{2}):(\d{2})(?::(\d{2}))?\] (.{1,200}?): (.*)")
_CALL = re.compile(r"(?:Incoming|Outgoing|Missed) (?:(?:voice|video|group) )?call(?: \([^()\n]*\))?")
_DELETED = "(This message was deleted)"
_REACTIONS = re.compile(r"\(- [^\n]* -\)")
_STICKER = re.compile(r"\(\( [^\n]* \)\)")
_ATTACHMENT = re.compile(r"!?\[[^\[\]\n]*\]\(\.{1,2}/[^()\n]*\) {0,2}")
_PROGRAM = "Signal"


def is_signal(start: str) -> bool:
    """Return whether a text begins like one of these files."""
    first = start.partition("\n")[0]
    if first.startswith("{"):
        exported = '"date"' in first and '"sender"' in first and '"body"' in first
        return exported or ('"backupTimeMs"' in first and '"version"' in first)
    return _HEAD.fullmatch(first) is not None and first.endswith("  ")


def read_signal(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text.

    Args:
        file: A data.json, chat.md or main.jsonl, or a folder or zip file with chats. If a chat has both a data.json and
            a chat.md, data.json is read.

    Raises:
        UsageError: The folder or zip file has no such files.
        LoraFtError: A file is damaged, or a message differs from the format of Signal or signal-export.
    """
    if not file.is_dir() and not is_zip(file):
        yield from _file(file)
        return
    files = files_below(root_of(file), FILES)
    structured = {str(path.parent) for path in files if path.name == "data.json"}
    paths = [path for path in files if path.name != "chat.md" or str(path.parent) not in structured]
    if not paths:
        raise UsageError(f"{file} has no data.json, chat.md or main.jsonl of Signal", "export it with signal-export")
    for path in paths:
        yield from _file(path)


def _file(file: File) -> Iterator[tuple[str, Message]]:
    first = next((line for _, line in text_lines(file)), "")
    if not first.startswith("{"):
        return _markdown(file)
    return _backup(file) if '"backupTimeMs"' in first else _lines(file)


def _objects(file: File) -> Iterator[tuple[int, Fields]]:
    for number, line in text_lines(file):
        if line.strip():
            yield number, Fields(parse_json(line, f"{file}:{number}"), f"{file}:{number}", _PROGRAM)


def _chat(file: File) -> str:
    return clean_name(folder_name(file)) or clean_name(Path(file.name).stem)


def _lines(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) from a data.json of signal-export, which has one object per line."""
    chat = _chat(file)
    for number, fields in _objects(file):
        text, sender = clean_text(fields.text("body")), clean_name(fields.text("sender"))
        if not text or not sender or fields.flag("deleted") or fields.flag("call") or _CALL.fullmatch(text):
            continue
        yield chat, Message(f"{number}", fields.date("date"), sender, text)


def _markdown(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) from a chat.md of signal-export."""
    chat = _chat(file)
    head: tuple[int, re.Match[str]] | None = None
    lines: list[str] = []
    for number, line in text_lines(file):
        match = _HEAD.fullmatch(line)
        if match is None:
            lines.append(line)
            continue
        if (message := _message(file, head, lines)) is not None:
            yield chat, message
        head, lines = (number, match), [match[8]]
    if (message := _message(file, head, lines)) is not None:
        yield chat, message


def _message(file: File, head: tuple[int, re.Match[str]] | None, lines: list[str]) -> Message | None:
    if head is None:
        return None
    number, match = head
    text = _spoken(lines)
    sender = clean_name(match[7])
    if not text or not sender or text == _DELETED or _CALL.fullmatch(text):
        return None
    try:
        year, month, day, hour, minute = map(int, match.groups()[:5])
        date = datetime.datetime(year, month, day, hour, minute, int(match[6] or 0))
    except ValueError as error:
        where = f"{file}:{number}"
        raise LoraFtError(f"{where} has no date that can be read ({match[0][:22]})", "export the chat again") from error
    return Message(f"{number}", float(calendar.timegm(date.timetuple())), sender, text)


def _spoken(lines: list[str]) -> str:
    """Return a body without its leading quote, reactions, stickers and attachments."""
    place = 0
    while place < len(lines) and (not lines[place].strip() or lines[place].startswith("> ")):
        place += 1
    quoted = any(line.startswith("> ") for line in lines[:place])
    body = lines[place:] if quoted else lines
    spoken = [
        _ATTACHMENT.sub("", line)
        for line in body
        if not _REACTIONS.fullmatch(line.strip()) and not _STICKER.fullmatch(line.strip())
    ]
    return clean_text("\n".join(spoken))


def _backup(file: File) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) from Signal's own plain text export: one frame per line, people and chats first."""
    names: dict[str, str] = {}
    chats: dict[str, str] = {}
    counts: dict[str, int] = {}
    for number, frame in _objects(file):
        if (recipient := frame.child("recipient")) is not None:
            names[recipient.key("id")] = _recipient(recipient)
        elif (chat := frame.child("chat")) is not None:
            name = names.get(chat.key("recipientId"), "") or "Note to Self"
            counts[name] = counts.get(name, 0) + 1
            chats[chat.key("id")] = name if counts[name] == 1 else f"{name} #{counts[name]}"
        elif (item := frame.child("chatItem")) is not None:
            standard = item.child("standardMessage")
            words = standard.child("text") if standard is not None else None
            text = clean_text(words.text("body")) if words is not None else ""
            if not text or standard is None:
                continue
            where = chats.get(item.key("chatId"))
            sender = names.get(item.key("authorId"))
            if where is None or not sender:
                raise LoraFtError(f"{file}:{number} is a message of an unknown chat or author", "export it again")
            sent = item.seconds("dateSent", per_second=1000)
            quote = standard.child("quote")
            answered = quote.key("targetSentTimestamp") if quote is not None else ""
            yield where, Message(item.key("dateSent"), sent, sender, text, answered or None)


def _recipient(recipient: Fields) -> str:
    """Return the name of a person or group."""
    if (contact := recipient.child("contact")) is not None:
        nickname = contact.child("nickname")
        nickname_text = (
            clean_name(f"{nickname.text('given')} {nickname.text('family')}") if nickname is not None else ""
        )
        system = clean_name(f"{contact.text('systemGivenName')} {contact.text('systemFamilyName')}")
        profile = clean_name(f"{contact.text('profileGivenName')} {contact.text('profileFamilyName')}")
        return (
            nickname_text
            or system
            or profile
            or clean_name(contact.text("username") or contact.key("e164"))
            or f"#{recipient.key('id')}"
        )
    if (group := recipient.child("group")) is not None:
        snapshot = group.child("snapshot")
        title = snapshot.child("title") if snapshot is not None else None
        return (clean_name(title.text("title")) if title is not None else "") or f"#{recipient.key('id')}"
    return "Me" if "self" in recipient else ""
