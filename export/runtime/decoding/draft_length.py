"""Choose the length of drafts while generating, from the benefit of drafts and the cost of calls.

A call that checks a draft of n tokens takes longer than a plain step and yields up to n + 1 tokens. Whether that pays
off depends on the machine, the precision, the batch and the text. `DraftLengthController` therefore keeps two running
estimates: the share of drafted tokens that is accepted (`_Share`), by the evidence for a token (`Evidence`), and the
duration of a call by its width (`_Cost`). It chooses the width with the most expected tokens per second. Four guards
keep estimates current and limit the cost of bad ones:

- the next larger width is tried from time to time, since its cost is unknown otherwise (`_OFTEN`, `_SELDOM`);
- a plain call is made after many calls with drafts (`_STALE`), since all gains are measured against its cost;
- after several refused drafts the search for drafts pauses (`_Rest`), since the search takes time;
- if drafts yielded fewer tokens than plain calls would have in the same time, drafts are switched off (`_Gain`).

Estimates are exponential averages, so the controller adapts to changes in the text. One controller serves all calls of
a model.
"""

from __future__ import annotations

import functools
import os
import threading
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from lora_ft.export.runtime.phrases import NO_PHRASES

_P = ParamSpec("_P")
_R = TypeVar("_R")

LONGEST = 16  # largest draft, in tokens
_WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 1 + LONGEST)
_SURE = 0.985  # largest share of accepted tokens that is believed
_KEPT = 0.97  # weight of older counts at each new draft, since texts differ
# weight of a timing below and above the estimate; other load on the machine can only slow a call down
_FASTER, _SLOWER = 0.3, 0.03
_TRIES = 3  # calls before a width's timing counts: the first may load a graph, and any may be disturbed
_SLOPE = 0.06  # assumed cost of each further token until measured, as a share of a plain call
# required speed-up of a draft over a plain call, for one row and for several: estimates are noisy, and a batch waits
# for its slowest row, so the gain of the other rows counts less
_WORTH, _WORTH_TOGETHER = 1.15, 1.4
_OFTEN, _SELDOM = 16, 256  # calls between two trials of the next larger width: at first, and at most
_STALE = 64  # calls with drafts after which the cost of a plain call is measured again
_REFUSALS = 8  # consecutive refusals before the search for drafts pauses
_SHORT, _LONG = 8, 32  # length of this pause, in calls: the first and the longest
_PAID = 1.05  # required recent speed-up of all drafts together
_DRAFTED = 16  # calls with drafts before that speed-up is checked
_OFF, _LONGEST_OFF = 64, 1024  # calls without drafts after a failed check: at first, and at most


# Why a token is drafted: (origin, degree). Origins and their degrees:
#   copy    number of tokens that are the same before it, up to MATCHED
#   resume  0: the source goes on after a token that is not its own
#   start   0: the place in the source where the last answer began
#   phrase  share of the training answers, in eighths (`runtime.phrases`)
Evidence = tuple[str, int]
MATCHED = 8
EIGHTHS = 8


def _expected_share(evidence: Evidence) -> float:
    """Return the share of accepted tokens that is assumed until measured."""
    origin, degree = evidence
    if origin == "copy":
        return (0.5, 0.7, 0.8, 0.85, 0.9)[min(degree, 5) - 1]
    return (degree + 0.5) / EIGHTHS if origin == "phrase" else 0.4


def _locked(
    method: Callable[Concatenate[DraftLengthController, _P], _R],
) -> Callable[Concatenate[DraftLengthController, _P], _R]:
    """Return the method under the controller's lock, since all threads of a model share one controller."""

    @functools.wraps(method)
    def call(self: DraftLengthController, /, *args: _P.args, **options: _P.kwargs) -> _R:
        with self.lock:
            return method(self, *args, **options)

    return call


class DraftLengthController:
    """Running estimates of a model's call costs and of its drafts' acceptance; threads may share it.

    Attributes:
        lock: Held while estimates are read or changed.
        start: Place in the source where the latest answer began to copy it, or -1.
        phrases: Phrases to draft from; the generator sets those of a bundle.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._shares: dict[Evidence, _Share] = {}
        self.start = -1
        self.phrases = NO_PHRASES
        self._costs: dict[int, _Cost] = {}  # by the number of rows of a call
        self._rests: defaultdict[int, _Rest] = defaultdict(_Rest)  # likewise
        self._gains: defaultdict[int, _Gain] = defaultdict(_Gain)  # likewise
        self._since_plain: Counter[int] = Counter()  # likewise: calls with drafts since the last plain call
        self._turn, self._pause = 0, _OFTEN

    @_locked
    def rests(self, rows: int) -> bool:
        """Return whether the next call should neither use nor search for drafts."""
        return self._rests[rows].take()

    def share(self, evidence: Evidence) -> float:
        """Return the share of the tokens with this evidence that is accepted."""
        share = self._shares.get(evidence)  # no lock, since this is asked for every token of a draft
        return share.value if share else _expected_share(evidence)

    @_locked
    def width(self, rows: int, drafts: Sequence[Sequence[float]]) -> int:
        """Return the number of tokens per row of the next call that promises the most tokens per second.

        Args:
            rows: Number of rows of the call.
            drafts: Shares of the tokens of each unfinished row's draft.
        """
        longest = max(map(len, drafts))
        if not longest:
            return 1
        cost = self._of(rows)
        widths = [width for width in _WIDTHS if width <= longest] + [longest + 1]
        expected = [list(accumulate(accumulate(draft, mul), initial=1.0)) for draft in drafts]
        rates = {width: sum(each[:width][-1] for each in expected) / cost(width) for width in widths}
        best = max(widths, key=rates.__getitem__)
        if rates[best] < (_WORTH if rows == 1 else _WORTH_TOGETHER) * rates[1]:
            best = 1
        self._rests[rows].refused(best == 1)
        if self._since_plain[rows] >= _STALE:
            return 1
        self._turn += 1
        if self._turn < self._pause or best == widths[-1]:
            return best
        self._turn, self._pause = 0, min(2 * self._pause, _SELDOM) if best == 1 else _OFTEN
        return widths[widths.index(best) + 1]

    @_locked
    def took(self, rows: int, width: int, seconds: float) -> None:
        """Record the duration of a call with `width` tokens per row."""
        self._since_plain[rows] = self._since_plain[rows] + 1 if width > 1 else 0
        if seconds > 0:  # else the clock is too coarse
            self._of(rows).took(width, seconds)

    @_locked
    def gave(self, rows: int, seconds: float, plain: int, tokens: int) -> None:
        """Record the tokens of a call with drafts, and its seconds with the search for them.

        A plain call would yield `plain` tokens, one per unfinished row.
        """
        if not self._gains[rows].pays(plain / self._of(rows)(1), tokens, seconds):
            self._rests[rows].off()

    @_locked
    def accepted(self, evidence: Sequence[Evidence], accepted: int) -> None:
        """Record how many tokens of a draft were accepted. Tokens after a rejected one do not count as tried."""
        for place, each in enumerate(evidence[: accepted + 1]):
            if each not in self._shares:
                self._shares[each] = _Share(_expected_share(each))
            self._shares[each].count(place < accepted)

    def _of(self, rows: int) -> _Cost:
        if rows not in self._costs:
            self._costs[rows] = _Cost(rows)
        return self._costs[rows]


class _Share:
    """The share of tried tokens that was accepted. Recent tokens weigh most."""

    def __init__(self, expected: float) -> None:
        self._accepted, self._tried = 4 * expected, 4.0

    def count(self, accepted: bool) -> None:
        self._accepted, self._tried = self._accepted * _KEPT + accepted, self._tried * _KEPT + 1

    @property
    def value(self) -> float:
        return min(self._accepted / self._tried, _SURE)


class _Rest:
    """Pauses without drafts after repeated refusals. Each pause is longer than the last until a draft is used."""

    def __init__(self) -> None:
        self._refusals, self._left, self._length, self._off = 0, 0, _SHORT, _OFF

    def take(self) -> bool:
        """Count a call, and return whether it belongs to a pause."""
        self._left -= self._left > 0
        return self._left > 0

    def refused(self, refused: bool) -> None:
        """Record that a draft was refused, or used."""
        self._refusals = self._refusals + 1 if refused else 0
        if not refused:
            self._length = _SHORT
        elif self._refusals == _REFUSALS:
            self._refusals, self._left, self._length = 0, self._length, min(2 * self._length, _LONG)

    def off(self) -> None:
        """Start a long pause, since drafts yielded less than plain calls."""
        self._left, self._off = self._off, min(2 * self._off, _LONGEST_OFF)


class _Gain:
    """Recent tokens of calls with drafts, compared with those of plain calls in the same time."""

    def __init__(self) -> None:
        self._calls, self._tokens, self._instead = 0, 0.0, 0.0

    def pays(self, rate: float, tokens: int, seconds: float) -> bool:
        """Record a call. Return whether recent drafts beat plain calls, which yield `rate` tokens per second."""
        self._calls += 1
        self._tokens, self._instead = self._tokens * _KEPT + tokens, self._instead * _KEPT + rate * seconds
        if self._calls < _DRAFTED or self._tokens >= _PAID * self._instead:
            return True
        self._calls, self._tokens, self._instead = 0, 0.0, 0.0
        return False


class _Cost:
    """Duration of a call by its width, in seconds: measured, or estimated from measured widths."""

    def __init__(self, rows: int) -> None:
        self._slope = _SLOPE * rows
        self._seconds: dict[int, float] = {}
        self._calls: Counter[int] = Counter()

    def took(self, width: int, seconds: float) -> None:
        self._calls[width] += 1
        estimate = self._seconds.setdefault(width, seconds)
        if self._calls[width] <= _TRIES:
            self._seconds[width] = min(estimate, seconds)
        else:
            self._seconds[width] = estimate + (seconds - estimate) * (_FASTER if seconds < estimate else _SLOWER)

    def __call__(self, width: int) -> float:
        measured = sorted(item for item in self._seconds.items() if self._calls[item[0]] >= _TRIES)
        if not measured:
            return 1 + self._slope * (width - 1)
        after = bisect(measured, (width, 0.0))
        if after < len(measured) and (after == 0 or measured[after][0] == width):
            return measured[after][1]
        below, seconds = measured[after - 1]
        if after < len(measured):
            above, more = measured[after]
            return seconds + (more - seconds) * (width - below) / (above - below)
        fewest, least = measured[0]
        slope = (seconds - least) / (below - fewest) if below > fewest else self._slope * least
        return seconds + max(slope, 0.0) * (width - below)


_CONTROLLERS: WeakKeyDictionary[Any, DraftLengthController] = WeakKeyDictionary()
_LOCK = threading.Lock()


def controller_of(model: object) -> DraftLengthController:
    """Return the controller that all calls of a model share."""
    with _LOCK:
        return _CONTROLLERS.setdefault(model, DraftLengthController())


def _unlock() -> None:
    """Replace the locks in a forked child, which lacks the threads that hold them. Estimates stay valid."""
    global _LOCK
    _LOCK = threading.Lock()
    for controller in list(_CONTROLLERS.values()):
        controller.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)
