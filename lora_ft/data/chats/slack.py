"""Reader of Slack's export (a folder or zip file with users.json and daily files per channel) and slackdump's files.

The text of a message is in `text` with markup (`<@U123>`), or in `blocks` alone if an app or newer client wrote it.
Replies carry the time of the first message of their thread (`thread_ts`). A thread is a conversation of its own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, files_below, folder_name, is_zip, root_of
from lora_ft.data.chats.stream import objects, top_keys, walk

_SPOKEN = ("", "me_message", "thread_broadcast", "file_share")  # messages of every other subtype are written by Slack
_BOT = "bot_message"
_SLACKBOT = "USLACKBOT"  # Slack's own bot, which users.json may lack
_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json")
_CHANNELS = ("channels.json", "groups.json", "mpims.json")
_MARKS = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")
_PROGRAM = "Slack"


def read_slack(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (channel, message) for every message with a text, day by day.

    Args:
        file: Folder or zip file of an export, folder of a channel, file of a day, or file of slackdump.

    Raises:
        UsageError: There are no daily files.
        LoraFtError: A file is damaged, or a message differs from Slack's format.
    """
    if file.is_file() and not is_zip(file):
        yield from _channel_file(file)
        return
    root = root_of(file)
    people = _people(root)
    days = files_below(root, _DAY)
    if not days:
        raise UsageError(
            f"{file} is not an export of Slack: it has no daily files", "give the folder with users.json, or the zip"
        )
    for day in days:
        for value in objects(day, "item"):
            message = people.read(Fields(value, f"{day}", _PROGRAM).named("ts"))
            if message is not None:
                yield folder_name(day), message


def _channel_file(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (channel, message) from one file: a daily file, or slackdump's file of a channel with its threads."""
    people = _people(file.parent)
    if next(top_keys(file), None) is None:
        for value in objects(file, "item"):
            message = people.read(Fields(value, f"{file}", _PROGRAM).named("ts"))
            if message is not None:
                yield folder_name(file), message
        return
    channel = file.stem
    for key, value in walk(file, {"name", "messages.item"}):
        if key == "name":
            channel = Fields({key: value}, f"{file}", _PROGRAM).text(key) or channel
            continue
        fields = Fields(value, f"{file}", _PROGRAM).named("ts")
        replies = list(fields.children("slackdump_thread_replies"))
        root = fields.key("ts") if replies else ""
        read_replies = [(reply.key("ts"), people.read(reply.named("ts"), root)) for reply in replies]
        # A thread may repeat its first message.
        by_time = dict([(fields.key("ts"), people.read(fields, root)), *read_replies])
        yield from ((channel, message) for message in by_time.values() if message is not None)


@dataclass
class _People:
    """Names of users and channels by id, and the set of bots."""

    names: dict[str, str] = field(default_factory=dict)
    bots: set[str] = field(default_factory=lambda: {_SLACKBOT})
    channels: dict[str, str] = field(default_factory=dict)

    def read(self, fields: Fields, root: str = "") -> Message | None:
        """Return a message, or None if it is a notice of Slack or has no text.

        Args:
            fields: Fields of the message.
            root: Time of the first message of its thread, if the position in the file implies one, else "".
        """
        subtype = fields.text("subtype")
        if fields.text("type") != "message" or subtype not in (*_SPOKEN, _BOT):
            return None
        text, forwarded = clean_text(self._shown(fields.text("text"))) or clean_text(self._blocks(fields)), False
        if not text:
            text, forwarded = self._attached(fields)
        sender = self._sender(fields)
        if not text or not sender:
            return None
        stamp, thread = fields.key("ts"), fields.key("thread_ts") or root
        return Message(
            id=stamp,
            time=fields.seconds("ts"),
            sender=sender,
            text=text,
            reply_to=thread if thread and thread != stamp else None,
            thread=thread,
            forwarded=forwarded,
            bot=subtype == _BOT or bool(fields.text("bot_id")) or fields.text("user") in self.bots,
        )

    def _sender(self, fields: Fields) -> str:
        user, profile = fields.text("user"), fields.child("user_profile")
        if not user:
            return clean_name(fields.text("username") or fields.text("bot_id"))
        return self.names.get(user) or (_name(profile, user) if profile is not None else clean_name(user))

    def _attached(self, fields: Fields) -> tuple[str, bool]:
        """Return the text of attachments, and True if another person wrote it. Link previews do not count."""
        attachments = [
            attachment
            for attachment in fields.children("attachments")
            if not attachment.text("from_url") or _is_shared(attachment)
        ]
        texts = [
            clean_text(self._shown(attachment.text("text")) or self._blocks(attachment) or attachment.text("fallback"))
            for attachment in attachments
        ]
        return "\n".join(filter(None, texts)), any(map(_is_shared, attachments))

    def _shown(self, text: str) -> str:
        """Return a text with <@U123>, <#C1|name>, <!here> and <address|text> as Slack displays them."""
        return html.unescape(_MARKS.sub(self._mark, text))

    def _mark(self, match: re.Match[str]) -> str:
        kind, target, label = match.groups()
        if kind == "@":
            return "@" + (self.names.get(target) or label or target)
        if kind == "#":
            return f"#{label or self.channels.get(target) or target}"
        if kind == "!":
            return label or f"@{target.partition('^')[0]}"
        return label or target

    def _blocks(self, fields: Fields) -> str:
        """Return the text of `blocks`, joined by newlines."""
        return "\n".join(filter(None, (self._block(block) for block in fields.children("blocks"))))

    def _block(self, block: Fields) -> str:
        kind = block.text("type")
        if kind == "rich_text":
            return "\n".join(self._rich(part) for part in block.children("elements"))
        if kind == "context":
            return " ".join(self._composed(part) for part in block.children("elements"))
        if kind in ("section", "header"):
            heading = block.child("text")
            parts = [*([heading] if heading is not None else []), *block.children("fields")]
            return "\n".join(self._composed(part) for part in parts)
        return ""

    def _composed(self, part: Fields) -> str:
        if part.text("type") not in ("mrkdwn", "plain_text"):
            return ""  # an image or a button
        return self._shown(part.text("text")) if part.text("type") == "mrkdwn" else part.text("text")

    def _rich(self, part: Fields) -> str:
        """Return the text of a rich-text section, list, quote or code block, or of one of its elements."""
        kind = part.text("type")
        if kind == "rich_text_list":
            return "\n".join(f"• {self._rich(line)}" for line in part.children("elements"))
        if kind.startswith("rich_text_"):
            return "".join(self._rich(element) for element in part.children("elements"))
        if kind == "user":
            user = part.text("user_id")
            return "@" + self.names.get(user, user)
        if kind == "channel":
            channel = part.text("channel_id")
            return "#" + self.channels.get(channel, channel)
        if kind == "emoji":
            return f":{part.text('name')}:"
        if kind == "broadcast":
            return f"@{part.text('range')}"
        if kind == "usergroup":
            return f"@{part.text('usergroup_id')}"
        return part.text("text") or part.text("url") or part.text("fallback") or part.text("value")


def _is_shared(attachment: Fields) -> bool:
    return attachment.flag("is_share") or attachment.flag("is_msg_unfurl")


def _people(root: File) -> _People:
    """Return the names from an export's folder. The folder of a single channel has none."""
    people = _People()
    users = root / "users.json"
    if users.is_file():
        for value in objects(users, "item"):
            user = Fields(value, f"{users}", _PROGRAM)
            number, profile = user.text("id"), user.child("profile")
            people.names[number] = _name(profile, number, user)
            if user.flag("is_bot"):
                people.bots.add(number)
    for name in _CHANNELS:
        listed = root / name
        if listed.is_file():
            for value in objects(listed, "item"):
                channel = Fields(value, f"{listed}", _PROGRAM)
                people.channels[channel.text("id")] = clean_name(channel.text("name"))
    return people


def _name(profile: Fields | None, number: str, user: Fields | None = None) -> str:
    sources: list[tuple[Fields | None, str]] = [
        (profile, "display_name"),
        (profile, "real_name"),
        (user, "real_name"),
        (user, "name"),
        (profile, "name"),
    ]
    names = (clean_name(source.text(key)) for source, key in sources if source is not None)
    return next(filter(None, names), clean_name(number))
