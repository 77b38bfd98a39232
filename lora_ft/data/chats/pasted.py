"""Heads of messages that somebody pasted into a message, told by time and sender.

An export runs forward in time. What is pasted was said before the message that it stands in, or, as an appointment, is
still to come; after it the chat goes on where it was. Such an *excursion* also happens when a message arrives late or
a clock is set, but then its people are those of the chat. So an excursion is text where all of its senders are
strangers, who say nothing in the chat itself, and there are several or it goes far; or where it repeats messages that
came before. In doubt it is messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LONGEST_PASTE = 200  # heads in one message
_SLACK = 3600.0  # seconds that a clock goes back at the end of summer time
_FAR = 12 * 3600.0  # seconds; a newcomer's message arrives late by less


def find_pasted(times: Sequence[float], senders: Sequence[int]) -> set[int]:
    """Return the indices of pasted heads.

    Args:
        times: of all heads of a file, in seconds.
        senders: a number for each sender; -1 where WhatsApp itself speaks.
    """
    drops = [at for at in range(1, len(times)) if times[at] < times[at - 1] - _SLACK]
    pasted: set[int] = set()
    for find in (_backward, _forward):
        runs = [run for at in drops if at not in pasted and (run := find(times, at)) is not None]
        inside = Counter(senders[at] for at in {at for run in runs for at in run})
        total = Counter(sender for sender in senders if sender in inside) if inside else Counter()
        strangers = {sender for sender in inside if inside[sender] == total[sender]}
        for run in runs:
            people = [at for at in run if senders[at] >= 0]
            known = [at for at in people if senders[at] not in strangers]
            several = len({senders[at] for at in people}) > 1
            far = min(abs(times[at] - times[run.start - 1]) for at in run) > _FAR
            if (
                people
                and (several or far or known)
                and all(_is_repeated(times, senders, run.start, at) for at in known)
            ):
                pasted.update(run)
    return pasted


def _backward(times: Sequence[float], at: int) -> range | None:
    """Return the run that begins at a drop and ends where the time before it is reached again."""
    for end in range(at + 1, min(len(times), at + LONGEST_PASTE + 1)):
        if times[end] >= times[at - 1] - _SLACK:
            return range(at, end)
    return None


def _forward(times: Sequence[float], at: int) -> range | None:
    """Return the run that ends at a drop and began where time jumped ahead."""
    for start in range(at - 1, max(0, at - LONGEST_PASTE - 1), -1):
        if times[start - 1] <= times[at] + _SLACK:
            return range(start, at)
    return None


def _is_repeated(times: Sequence[float], senders: Sequence[int], start: int, at: int) -> bool:
    """Whether the same sender has the same time in an earlier head."""
    return any(times[other] == times[at] and senders[other] == senders[at] for other in range(start))
