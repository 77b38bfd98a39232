"""Slack's export: a folder or a zip file with users.json and, for each channel, a file a day."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import Path as ZipPath

from export.errors import LoraFtError, UsageError
from lora_ft.chats.message import Message, clean_name, clean_text
from lora_ft.chats.stream import File, objects

_SPOKEN = (None, "me_message", "thread_broadcast", "file_share")  # every other subtype is a bot's or Slack's own
_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json")
_MARKS = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")


def read_slack(file: Path) -> Iterator[tuple[str, Message]]:
    """(channel, message) of every message that a person wrote, day by day.

    Raises:
        UsageError: there are no days.
        LoraFtError: a file is damaged, or a message has no date.
    """
    root: File = ZipPath(file) if file.is_file() else file
    names = _names(root)
    channels = [folder for folder in _listed(root) if folder.is_dir()]
    days = [(folder.name, day) for folder in (*channels, root) for day in _listed(folder) if _DAY.fullmatch(day.name)]
    if not days:
        raise UsageError(f"{file} is no export of Slack: it has no days", "give the folder with users.json, or the zip")
    for channel, day in days:
        for value in objects(day, "item"):
            message = _message(value, names, day) if isinstance(value, dict) else None
            if message is not None:
                yield channel, message


def _listed(folder: File) -> list[File]:
    return sorted(folder.iterdir(), key=lambda entry: entry.name)


def _names(root: File) -> dict[str, str]:
    """A name for each user's id; of a channel's folder alone none are known."""
    users = root / "users.json"
    if not users.is_file():
        return {}
    return {str(user.get("id")): _name(user) for user in objects(users, "item")}


def _name(user: Mapping[str, Any]) -> str:
    profile = user.get("profile") or user
    known = (profile.get("display_name"), profile.get("real_name"), user.get("real_name"), user.get("name"))
    return clean_name(next((name for name in known if name), str(user.get("id"))))


def _message(value: Mapping[str, Any], names: Mapping[str, str], day: File) -> Message | None:
    if value.get("type") != "message" or value.get("subtype") not in _SPOKEN or value.get("bot_id"):
        return None
    user = value.get("user")
    text = clean_text(html.unescape(_MARKS.sub(lambda found: _shown(found, names), str(value.get("text") or ""))))
    if not text or not user:
        return None
    stamp, thread = value.get("ts"), value.get("thread_ts")
    try:
        time = float(str(stamp))
    except ValueError as error:
        raise LoraFtError(f"{day} has a message without a date (ts {stamp!r})", "export the workspace again") from error
    profile = value.get("user_profile")
    sender = names.get(user) or (_name(profile | {"id": user}) if isinstance(profile, dict) else clean_name(user))
    return Message(str(stamp), time, sender, text, thread if thread != stamp else None)


def _shown(found: re.Match[str], names: Mapping[str, str]) -> str:
    """What a reader of Slack sees of <@U123>, <#C1|name>, <!here>, <address|text>."""
    kind, target, label = found.groups()
    if kind == "@":
        return "@" + (names.get(target) or label or target)
    if kind == "#":
        return f"#{label or target}"
    if kind == "!":
        return label or f"@{target.partition('^')[0]}"
    return label or target
