"""Rows of chats (columns `context`, `response`, `sender`), split so that no two splits share messages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.formats import Census, Choice, doubts, pages_of, read_chats
from lora_ft.data.chats.lines import Line, context_of
from lora_ft.data.chats.message import Message, clean_name
from lora_ft.data.chats.names import anonymize
from lora_ft.data.chats.sessions import Session, cut, sessions_of, turns
from lora_ft.data.chats.summary import ChatSummary, summarize
from lora_ft.data.readers import Row, find_files
from lora_ft.tasks.data import Chat, Data


@dataclass(frozen=True)
class ChatRows:
    """Rows of chats by split.

    Attributes:
        rows: (place, row) pairs of each split. A place is "file chat#message".
        chats: Summaries of the chats behind the rows.
        doubts: Descriptions of ambiguous parts of the exports, which were read by convention.
    """

    rows: dict[str, list[tuple[str, Row]]] = field(default_factory=dict)
    chats: list[ChatSummary] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_chat_rows(data: Data, sources: Mapping[str, str | list[str]], shares: Mapping[str, float]) -> ChatRows:
    """Read the chats of some splits and convert them to rows.

    Args:
        data: Data section of the task, with `chat` and `root` set.
        sources: Files of the splits to read.
        shares: Shares of the splits to cut from the sessions of "train", if "train" is among the sources.

    Raises:
        UsageError: A file is missing, is not an export, or has too few messages.
        LoraFtError: A file is damaged.
    """
    assert data.root is not None and data.chat is not None  # load_task sets root, the caller checked chat
    output = ChatRows()
    parts = {name: _sessions(data, source, f"data.{name}", output) for name, source in sources.items()}
    if shares and "train" in parts:
        parts |= cut(parts["train"], shares)
    output.rows.update({name: list(_rows(sessions, data.chat)) for name, sessions in parts.items()})
    for name in (name for name, rows in output.rows.items() if not rows):
        source = f"data.{name}: {sources[name]}" if name in sources else f"data.split.{name}"
        raise UsageError(f"{source} has no message with an earlier message", "give a longer chat")
    return output


def _sessions(data: Data, source: str | list[str], key: str, output: ChatRows) -> list[Session]:
    """Return the sessions of every chat in some files, in order. Add the chats and doubts to `output`."""
    assert data.root is not None and data.chat is not None
    settings = data.chat
    left_out = frozenset(map(clean_name, settings.leave_out or ()))
    only = None if settings.only is None else [unicodedata.normalize("NFC", name) for name in settings.only]
    choice = Choice(only, settings.forwarded, settings.bots, left_out)
    sessions: list[Session] = []
    people: set[str] = set()
    covered: set[Path] = set()
    for file in find_files(data.root, source, key, folders=True):
        if file in covered:  # a page of a chat that was already read as a whole
            continue
        covered.update(pages_of(file))
        census = Census()
        chats = read_chats(file, settings.format, settings.keep, choice, census)
        output.doubts.extend(doubts(file, settings.format))
        if census.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(census.left_out.items()))
            output.doubts.append(f"{file}: messages left out: {census.left_out.total():,} ({reasons}); see data.chat")
        people |= census.people
        if settings.anonymize:
            chats = anonymize(chats, settings.seed, census.people)
        for chat, messages in chats.items():
            place = f"{file} {chat}".strip()
            output.chats.append(summarize(place, messages))
            sessions += sessions_of(place, messages, 60 * settings.gap_minutes)
    if key == "data.train" and (unknown := sorted(left_out - people)):
        raise UsageError(
            f"data.chat.leave_out has names that are not in these chats: {', '.join(unknown)}",
            "spell names as in the export",
        )
    return sessions


def _rows(sessions: Sequence[Session], settings: Chat) -> Iterator[tuple[str, Row]]:
    for turn in turns(sessions, context=settings.context, before=settings.before):
        row = {
            "context": context_of([_line(message) for message in turn.context], settings.characters),
            "response": str(_line(turn.response)),
            "sender": turn.response.sender,
        }
        yield f"{turn.chat}#{turn.response.id}", row


def _line(message: Message) -> Line:
    return Line(message.sender, message.text)
