"""Detection of message heads that were pasted into a message, by time and sender.

An export runs forward in time. A pasted message is older than the message that contains it, or, as an appointment,
newer. After it, the chat continues from its former time. Such an *excursion* also occurs when a message arrives late
or a clock is set, but then its people are those of the chat. So an excursion is pasted text in two cases:

- All its senders are strangers without messages in the chat itself, and they are several or the time jump is long.
- It repeats earlier messages.

Lines without a sender that go far ahead are appointments ("24.12.23, 18:00 - 20:00 dinner"), since WhatsApp's own lines
are never ahead.

In doubt, an excursion is read as messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LONGEST_PASTE = 200  # maximum heads in one message
_SLACK = 3600.0  # seconds; a clock goes back this far at the end of summer time
_FAR = 12 * 3600.0  # seconds; delayed messages of newcomers are late by less


def find_pasted(times: Sequence[float], senders: Sequence[int]) -> set[int]:
    """Return the indices of pasted heads.

    Args:
        times: Time of every head of a file, in seconds.
        senders: Number of every head's sender, -1 for WhatsApp itself.
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
            regulars = [at for at in people if senders[at] not in strangers]
            several = len({senders[at] for at in people}) > 1
            far = min(abs(times[at] - times[run.start - 1]) for at in run) > _FAR
            if (
                (people or find is _forward)
                and (several or far or regulars)
                and all(_is_repeated(times, senders, run.start, at) for at in regulars)
            ):
                pasted.update(run)
    return pasted


def _backward(times: Sequence[float], at: int) -> range | None:
    """Return the run of heads from a drop in time to the return to the time before it, or None."""
    for end in range(at + 1, min(len(times), at + LONGEST_PASTE + 1)):
        if times[end] >= times[at - 1] - _SLACK:
            return range(at, end)
    return None


def _forward(times: Sequence[float], at: int) -> range | None:
    """Return the run of heads from a jump ahead in time to a drop, or None."""
    for start in range(at - 1, max(0, at - LONGEST_PASTE - 1), -1):
        if times[start - 1] <= times[at] + _SLACK:
            return range(start, at)
    return None


def _is_repeated(times: Sequence[float], senders: Sequence[int], start: int, at: int) -> bool:
    """Return whether an earlier head has the same sender and time."""
    return any(times[earlier] == times[at] and senders[earlier] == senders[at] for earlier in range(start))
