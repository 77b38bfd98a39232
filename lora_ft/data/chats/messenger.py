"""Reader of Facebook's exports of Messenger and Instagram: message_1.json, message_2.json, …, newest messages first.

Facebook writes each byte of UTF-8 as a separate character (`cafÃ©`), which the reader repairs. End-to-end encrypted
chats have another form, with other names for the same fields and correct characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.fields import Fields
from lora_ft.data.chats.message import Message, clean_name, clean_text
from lora_ft.data.chats.places import File, files_below, is_zip, root_of
from lora_ft.data.chats.stream import objects, top_keys, walk

PAGE = re.compile(r"message_\d{1,9}\.json")
_ENCRYPTED = re.compile(r".*\.json")
_HEADER = ("title", "threadName")
_KEYS = {"participants", "title", "thread_path", "threadName", "magic_words", "is_still_participant"}
_BYTES = re.compile("[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_MAX_MESSAGES = 1_000_000  # maximum messages of a file; Facebook begins another after 10,000
_PROGRAM = "Facebook or Instagram (Download your information, JSON)"
# Facebook's notices in a person's name, in the wording of an English account. Calls have a field of their own.
_DONE = re.compile(
    r"(?:sent (?:an attachment|a photo|\d+ photos|a video|a link|a sticker|a GIF|a voice message"
    r"|a (?:live )?location|a poll)"
    r"|shared a (?:location|post|reel|story|link)|named the group .{1,200}|added .{1,300} to the group"
    r"|removed .{1,300} from the group|left the group|joined the (?:group|call|video chat)|created the group"
    r"|created a poll: .{1,300}|changed the (?:group photo|theme to .{1,80}|chat (?:theme|colors).{0,80})"
    r"|set the (?:quick reaction|emoji|nickname) .{1,200}|set (?:your|their own|his own|her own) nickname .{1,100}"
    r"|cleared the nickname .{1,100}|started (?:an audio|a video) (?:call|chat)|ended the (?:call|video chat)"
    r"|unsent a message|pinned a message|liked a message|reacted .{1,20} to (?:your|a) message|voted for .{1,300})\.? ?"
)
_OWN = re.compile(
    r"Liked a message ?|Reacted .{1,20} to your message ?|You are now connected on Messenger\.?"
    r"|Say hi to your new Facebook friend, .{1,100}|You can now message and call each other.{0,200}"
)


def is_messenger(file: File) -> bool:
    """Return whether a JSON file has the keys and messages of a Messenger or Instagram export."""
    keys = list(top_keys(file))
    return "messages" in keys and not _KEYS.isdisjoint(keys) and _has_messages(file)


def _has_messages(file: File) -> bool:
    first = next(objects(file, "messages.item"), None)
    return first is None or (isinstance(first, dict) and not {"sender_name", "senderName"}.isdisjoint(first))


def read_messenger(file: Path) -> Iterator[tuple[str, Message]]:
    """Yield (chat, message) for every message with a text, the oldest of each chat first.

    Args:
        file: A file, which is read with all files of its chat, or a folder or zip file of chats.

    Raises:
        UsageError: The folder or zip file has no such files.
        LoraFtError: A file is damaged, or a message differs from Facebook's format.
    """
    folder_of: dict[str, str] = {}
    for folder, pages in _chats(file).items():
        name = ""
        for page in reversed(pages):  # the first file holds the newest messages
            header = dict(walk(page, _HEADER))
            fields = Fields(header, f"{page}", _PROGRAM)
            title = clean_name(_repaired(fields.text("title"))) or re.sub(
                r"_\d+$", "", clean_name(fields.text("threadName"))
            )
            name = name or _free(title or clean_name(Path(folder).stem), folder, folder_of)
            messages = list(_page(page))
            yield from ((name, message) for message in reversed(messages))


def _chats(file: Path) -> dict[str, list[File]]:
    """Return the files of each chat, ordered by number."""
    if not file.is_dir() and not is_zip(file):
        numbered = PAGE.fullmatch(file.name)
        siblings = [page for page in files_below(file.parent, PAGE) if page.parent == file.parent] if numbered else []
        pages: list[File] = [*siblings] or [file]
        return {str(file.parent if numbered else file): pages}
    root = root_of(file)
    chats: dict[str, list[File]] = {}
    for page in files_below(root, PAGE):
        chats.setdefault(str(page.parent), []).append(page)
    if not chats:
        chats = {str(page): [page] for page in files_below(root, _ENCRYPTED) if is_messenger(page)}
    if not chats:
        raise UsageError(f"{file} has no message_1.json of Messenger or Instagram", "download the messages as JSON")
    return chats


def _free(name: str, folder: str, folder_of: dict[str, str]) -> str:
    """Return a chat name that no other folder has."""
    number, free = 1, name
    while folder_of.setdefault(free, folder) != folder:
        number += 1
        free = f"{name} #{number}"
    return free


def _page(page: File) -> Iterator[Message]:
    for count, value in enumerate(objects(page, "messages.item"), 1):
        if count > _MAX_MESSAGES:
            raise LoraFtError(f"{page} has more than {_MAX_MESSAGES:,} messages", "split the file")
        message = _message(Fields(value, f"{page}, message {count}", _PROGRAM), f"{page.name} {count}")
        if message is not None:
            yield message


def _message(fields: Fields, number: str) -> Message | None:
    encrypted = "senderName" in fields
    if fields.flag("is_unsent") or fields.flag("isUnsent") or "call_duration" in fields:
        return None
    if encrypted:
        sender, text, stamp = clean_name(fields.text("senderName")), clean_text(fields.text("text")), "timestamp"
        spoken = fields.text("type") in ("", "text", "link")
    else:
        sender, stamp = clean_name(_repaired(fields.text("sender_name"))), "timestamp_ms"
        text = clean_text(_repaired(fields.text("content")))
        spoken = fields.text("type") in ("", "Generic", "Share") and "users" not in fields
    if not text or not sender or not spoken or _is_own(text, sender):
        return None
    return Message(number, fields.seconds(stamp, per_second=1000), sender, text)


def _is_own(text: str, sender: str) -> bool:
    """Return whether a text is a notice of Facebook, which begins with the sender's name or with "You"."""
    subjects = (sender, sender.split()[0], "You")
    predicates = (text.removeprefix(f"{subject} ") for subject in subjects if text.startswith(f"{subject} "))
    return _OWN.fullmatch(text) is not None or any(map(_DONE.fullmatch, predicates))


def _repaired(text: str) -> str:
    """Return a text with every run of characters that spells the UTF-8 bytes of a character replaced by it."""
    return _BYTES.sub(_decoded, text)


def _decoded(match: re.Match[str]) -> str:
    try:
        return match[0].encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return match[0]
