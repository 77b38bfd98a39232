"""Sessions of a chat, what came before each of their messages, and how sessions are split for training and testing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.message import Message

_FEW = 2  # messages of the same session; with fewer, the context reaches further back


@dataclass(frozen=True)
class Session:
    """Messages of one chat without a long gap between them.

    Attributes:
        chat: which; the same for all sessions of a chat, and of no other.
        messages: at least one, sorted by time.
    """

    chat: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Turn:
    """A message and the earlier ones that it may follow from, oldest first, at least one."""

    chat: str
    context: tuple[Message, ...]
    response: Message


def sessions_of(chat: str, messages: Sequence[Message], gap: float) -> list[Session]:
    """A chat's messages, sorted by time, cut wherever more than `gap` seconds pass."""
    starts = [
        0,
        *(i for i, (a, b) in enumerate(itertools.pairwise(messages), 1) if b.time - a.time > gap),
        len(messages),
    ]
    return [Session(chat, tuple(messages[start:end])) for start, end in itertools.pairwise(starts) if end > start]


def cut(sessions: Sequence[Session], shares: Mapping[str, float]) -> dict[str, list[Session]]:
    """Whole sessions by split: the newest for the last split named, the oldest, all that is left, for "train".

    A share is of the messages, met as nearly as whole sessions allow; no split is empty.

    Args:
        sessions: of any number of chats.
        shares: of each split but "train".

    Raises:
        UsageError: there are fewer sessions than splits, or none are left to train on.
    """
    if len(sessions) <= len(shares):
        raise UsageError(
            f"data.split wants {len(shares) + 1} parts, and there are {len(sessions)} sessions",
            "lower data.chat.gap_minutes, or name files for each split",
        )
    rest = sorted(sessions, key=lambda session: session.messages[0].time)
    total = sum(len(session.messages) for session in rest)
    parts: dict[str, list[Session]] = {}
    for others, (name, share) in zip(range(len(shares), 0, -1), reversed(list(shares.items())), strict=True):
        parts[name] = []
        taken = 0
        while len(rest) > others and (not taken or 2 * (share * total - taken) > len(rest[-1].messages)):
            parts[name].insert(0, rest.pop())
            taken += len(parts[name][0].messages)
    return {**parts, "train": rest}


def turns(sessions: Sequence[Session], *, context: int, before: int) -> Iterator[Turn]:
    """Every message that another one precedes, in the order of the sessions.

    The context of a message is what precedes it in its session; with fewer than two such messages, what precedes it at
    all, among these sessions. Where it answers a message among them that the context would not reach, that one stands
    first, in place of the oldest.

    Args:
        sessions: of one split; nothing else is looked at, so that no split sees another.
        context: most messages of a context.
        before: messages that are taken from before a session.
    """
    chats: dict[str, tuple[list[Message], dict[str, Message]]] = {}
    for session in sessions:
        known, by_id = chats.setdefault(session.chat, ([], {}))
        start = len(known)
        for message in session.messages:
            reach = min(len(known) - start, context)
            if reach < min(_FEW, context):
                reach = max(reach, min(before, context))
            found = known[max(0, len(known) - reach) :]
            answered = by_id.get(message.reply_to) if message.reply_to is not None else None
            if answered is not None and answered not in found:
                found = [answered, *found[max(0, len(found) - context + 1) :]]
            if found:
                yield Turn(session.chat, tuple(found), message)
            known.append(message)
            by_id[message.id] = message
