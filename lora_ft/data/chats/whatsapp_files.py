"""Search for the text of a chat in WhatsApp's export: `_chat.txt` or a file named after the chat, next to its media."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from zipfile import Path as ZipPath

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.heads import find_head
from lora_ft.data.chats.message import clean_text
from lora_ft.data.chats.places import File, files_below, is_zip, opened, root_of

_CHAT = "_chat.txt"  # iOS; on Android "WhatsApp Chat with Ana.txt", in the phone's language
_TEXT = re.compile(r".*\.txt", re.IGNORECASE)
_LARGEST = 1 << 30  # bytes; exports end after 40,000 messages
_BEGINNING = 1 << 12  # bytes
_SHOWN = 4  # maximum names in an error


def chat_name(file: Path) -> str:
    """Return the name of a chat from the name of its file."""
    name = file.name
    for ending in (".zip", ".txt"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return clean_text(name)


def is_whatsapp(names: Iterable[str]) -> bool:
    """Return whether any file name is WhatsApp's name for the text of a chat."""
    return any(_TEXT.fullmatch(name) and (name.lower() == _CHAT or "whatsapp" in name.lower()) for name in names)


def chat_text(file: Path) -> File:
    """Return the text file of an export: the file itself, or the chat's file inside a zip file or folder.

    Text files sent in the chat lie next to it. The chat's file has a name of WhatsApp or begins with a message.

    Raises:
        UsageError: There is no text, there are several, or the text is too large.
        LoraFtError: The zip file is damaged or encrypted.
    """
    if not file.is_dir() and not is_zip(file):
        return file
    texts = files_below(root_of(file), _TEXT)
    best = [text for text in texts if text.name.lower() == _CHAT]
    best = best or [text for text in texts if is_whatsapp([text.name])] or texts
    shallowest = min((str(text).count("/") for text in best), default=0)
    best = [text for text in best if str(text).count("/") == shallowest]
    if len(best) > 1:
        best = [text for text in best if _begins_with_message(text)] or best
    if len(best) != 1:
        names = ", ".join(text.name for text in best[:_SHOWN])
        raise UsageError(
            f"{file} has {len(best)} text files that may be the chat" + f": {names}" * bool(names),
            "unpack it and name the text",
        )
    (chat,) = best
    if isinstance(chat, ZipPath) and chat.root.getinfo(chat.at).file_size > _LARGEST:
        raise UsageError(f"{chat} has more than {_LARGEST:,} bytes", "check whether it is WhatsApp's export")
    return chat


def _begins_with_message(text: File) -> bool:
    with opened(text) as content:
        return find_head(content.read(_BEGINNING).decode("utf-8", "replace").partition("\n")[0]) is not None
