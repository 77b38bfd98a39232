"""What a chat holds, for `validate` to show: a wrong order of dates is seen at once in a first and a last date."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from lora_ft.data.chats.message import Message


@dataclass(frozen=True)
class ChatSummary:
    """The messages of one chat that rows are made of.

    Attributes:
        place: file and chat.
        messages: number of messages.
        people: number of senders.
        first, last: the earliest and the latest day.
    """

    place: str
    messages: int
    people: int
    first: datetime.date
    last: datetime.date


def summarize(place: str, messages: Sequence[Message]) -> ChatSummary:
    """Return what a chat holds.

    Args:
        place: file and chat.
        messages: at least one.
    """
    times = [message.time for message in messages]
    people = {message.sender for message in messages}
    return ChatSummary(place, len(messages), len(people), _day(min(times)), _day(max(times)))


def _day(time: float) -> datetime.date:
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=time)).date()
