"""Sessions of a chat, the context of each message, and the split of sessions for training and testing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.message import Message

_FEW = 2  # messages of the same session; with fewer, the context includes earlier sessions


@dataclass(frozen=True)
class Session:
    """Messages of one chat without a long gap between them.

    Attributes:
        chat: Identifier of the chat, common to all its sessions and unique among chats.
        messages: One or more messages, sorted by time.
    """

    chat: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Turn:
    """Message with its context: one or more earlier messages, oldest first."""

    chat: str
    context: tuple[Message, ...]
    response: Message


def sessions_of(chat: str, messages: Sequence[Message], gap: float) -> list[Session]:
    """Return the sessions of a chat: its messages, sorted by time, cut at every gap of more than `gap` seconds."""
    starts = [
        0,
        *(i for i, (a, b) in enumerate(itertools.pairwise(messages), 1) if b.time - a.time > gap),
        len(messages),
    ]
    return [Session(chat, tuple(messages[start:end])) for start, end in itertools.pairwise(starts) if end > start]


def cut(sessions: Sequence[Session], shares: Mapping[str, float]) -> dict[str, list[Session]]:
    """Return whole sessions by split. The last split named gets the newest sessions, "train" the oldest.

    A share is a fraction of the messages, met as closely as whole sessions allow. No split is empty.

    Args:
        sessions: Sessions of any number of chats.
        shares: Share of each split except "train".

    Raises:
        UsageError: There are fewer sessions than splits.
    """
    if len(sessions) <= len(shares):
        raise UsageError(
            f"data.split requires {len(shares) + 1} sessions (got {len(sessions)})",
            "lower data.chat.gap_minutes, or name files for each split",
        )
    remaining = sorted(sessions, key=lambda session: session.messages[0].time)
    total = sum(len(session.messages) for session in remaining)
    parts: dict[str, list[Session]] = {}
    for splits_left, (name, share) in zip(range(len(shares), 0, -1), reversed(list(shares.items())), strict=True):
        parts[name] = []
        count = 0
        while len(remaining) > splits_left and (not count or 2 * (share * total - count) > len(remaining[-1].messages)):
            parts[name].insert(0, remaining.pop())
            count += len(parts[name][0].messages)
    return {**parts, "train": remaining}


def turns(sessions: Sequence[Session], *, context: int, before: int) -> Iterator[Turn]:
    """Yield every message that has a predecessor, in the order of the sessions.

    The context of a message is the messages before it in its session. If there are fewer than two, it includes earlier
    sessions of `sessions`. If the message answers an earlier one outside its context, the answered message comes first,
    instead of the oldest.

    Args:
        sessions: Sessions of one split. Contexts contain no other messages, so no split sees another's.
        context: Maximum number of messages in a context.
        before: Maximum number of messages in a context that includes earlier sessions.
    """
    chats: dict[str, tuple[list[Message], dict[str, Message]]] = {}
    for session in sessions:
        earlier, by_id = chats.setdefault(session.chat, ([], {}))
        start = len(earlier)
        for message in session.messages:
            reach = min(len(earlier) - start, context)
            if reach < min(_FEW, context):
                reach = max(reach, min(before, context))
            context_messages = earlier[max(0, len(earlier) - reach) :]
            answered = by_id.get(message.reply_to) if message.reply_to is not None else None
            if answered is not None and answered not in context_messages:
                context_messages = [answered, *context_messages[max(0, len(context_messages) - context + 1) :]]
            if context_messages:
                yield Turn(session.chat, tuple(context_messages), message)
            earlier.append(message)
            by_id[message.id] = message
