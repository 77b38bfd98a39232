"""Summary of a chat for `validate`. The first and last dates reveal a wrong order of day and month at once."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from lora_ft.data.chats.message import Message


@dataclass(frozen=True)
class ChatSummary:
    """Summary of the messages of one chat that become rows.

    Attributes:
        place: File and chat.
        messages: Number of messages.
        people: Number of senders.
        first, last: Earliest and latest day.
    """

    place: str
    messages: int
    people: int
    first: datetime.date
    last: datetime.date


def summarize(place: str, messages: Sequence[Message]) -> ChatSummary:
    """Return the summary of a chat.

    Args:
        place: File and chat.
        messages: One or more messages.
    """
    times = [message.time for message in messages]
    people = {message.sender for message in messages}
    return ChatSummary(place, len(messages), len(people), _day(min(times)), _day(max(times)))


def _day(time: float) -> datetime.date:
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=time)).date()
