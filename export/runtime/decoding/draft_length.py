"""How long drafts should be: what share of them is accepted, and what a call costs with so many tokens."""

from __future__ import annotations

import functools
import threading
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

LONGEST = 16  # tokens in a draft
_WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 1 + LONGEST)
_KEPT = 0.97  # of what was counted, at each new draft: a text is unlike the one before
_FASTER, _SLOWER = 0.3, 0.03  # the same of a call's time, as what else the machine does only makes it longer
_TRIES = 3  # calls before their time is believed: the first may load a graph, and any may be disturbed
_SLOPE = 0.06  # what each further token of a call adds, as a share of the shortest, until it is known
# times as many tokens for the time as without a draft, or none is made: costs and shares are known with some noise, and
# a batch waits for its slowest row, so that what another row gains is worth less
_WORTH, _WORTH_TOGETHER = 1.15, 1.4
_OFTEN, _SELDOM = 16, 256  # calls between two that try more than pays as far as is known
_REFUSALS = 8  # drafts refused in a row before none is looked for: looking takes time, too
_SHORT, _LONG = 8, 32  # calls of such a rest: the first one, and the longest
_PAID = 1.05  # times as many tokens for the time as without drafts is what drafts must have given lately, all together
_DRAFTED = 16  # calls with drafts before that is asked
_OFF, _LONGEST_OFF = 64, 1024  # calls without any where they did not


def _locked(
    method: Callable[Concatenate[DraftLengthController, _P], _R],
) -> Callable[Concatenate[DraftLengthController, _P], _R]:
    """Let one thread at a time call a method: all threads of a model learn together."""

    @functools.wraps(method)
    def call(self: DraftLengthController, /, *args: _P.args, **options: _P.kwargs) -> _R:
        with self.lock:
            return method(self, *args, **options)

    return call


class DraftLengthController:
    """What was learnt of a model's calls and of the drafts it was given; threads may share it.

    Attributes:
        lock: Held while what was learnt is read or changed.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # a draft's first token is often wrong, but where it is right, the answer copies, and so are most after it
        self._first = {1: _Share(0.5), 2: _Share(0.7), 3: _Share(0.8)}  # by the tokens that were matched
        self._onward = _Share(0.8)
        self._costs: dict[int, _Cost] = {}  # by the rows of a call
        self._rests: defaultdict[int, _Rest] = defaultdict(_Rest)  # likewise
        self._gains: defaultdict[int, _Gain] = defaultdict(_Gain)  # likewise
        self._turn, self._pause = 0, _OFTEN

    @_locked
    def rests(self, rows: int) -> bool:
        """Whether the next call is to do without drafts, and without looking for any."""
        return self._rests[rows].take()

    @_locked
    def width(self, rows: int, drafts: Sequence[tuple[int, int]]) -> int:
        """How many tokens a row the next call should have: those that come for the time are the most.

        Args:
            rows: of the call.
            drafts: (tokens that were matched, tokens drafted) of each row that is not at its end.
        """
        longest = max(length for _, length in drafts)
        if not longest:
            return 1
        cost = self._of(rows)
        widths = [width for width in _WIDTHS if width <= longest] + [longest + 1]
        rates = {width: self._expected(drafts, width) / cost(width) for width in widths}
        best = max(widths, key=rates.__getitem__)
        if rates[best] < (_WORTH if rows == 1 else _WORTH_TOGETHER) * rates[1]:
            best = 1
        self._rests[rows].refused(best == 1)
        self._turn += 1
        if self._turn < self._pause or best == widths[-1]:
            return best
        self._turn, self._pause = 0, min(2 * self._pause, _SELDOM) if best == 1 else _OFTEN
        return widths[widths.index(best) + 1]

    @_locked
    def took(self, rows: int, width: int, seconds: float) -> None:
        """A call with so many tokens a row took so long."""
        if seconds > 0:  # else the clock stood still
            self._of(rows).took(width, seconds)

    @_locked
    def gave(self, rows: int, seconds: float, plain: int, tokens: int) -> None:
        """A call with drafts gave so many tokens; without, it would have given `plain`, one for each row not ended."""
        if not self._gains[rows].pays(plain / self._of(rows)(1), tokens, seconds):
            self._rests[rows].off()

    @_locked
    def accepted(self, found: int, accepted: int, drafted: int) -> None:
        """So many tokens of a draft were accepted."""
        if drafted:
            self._first[found].count(min(accepted, 1), 1)
        if accepted:
            self._onward.count(accepted - 1, min(accepted, drafted - 1))  # after one rejected token none was tried

    def _of(self, rows: int) -> _Cost:
        if rows not in self._costs:
            self._costs[rows] = _Cost(rows)
        return self._costs[rows]

    def _expected(self, drafts: Sequence[tuple[int, int]], width: int) -> float:
        """Tokens that a call gives."""
        total, onward = float(len(drafts)), self._onward.value
        for found, length in drafts:
            if length:
                total += self._first[found].value * (1 - onward ** min(length, width - 1)) / (1 - onward)
        return total


class _Share:
    """Of tokens tried, how many were accepted; what was counted lately weighs most."""

    def __init__(self, expected: float) -> None:
        self._accepted, self._tried = 4 * expected, 4.0

    def count(self, accepted: int, tried: int) -> None:
        self._accepted, self._tried = self._accepted * _KEPT + accepted, self._tried * _KEPT + tried

    @property
    def value(self) -> float:
        return min(self._accepted / self._tried, 0.97)


class _Rest:
    """When drafts were refused again and again, some calls without; more of them each time until one is taken."""

    def __init__(self) -> None:
        self._refusals, self._left, self._length, self._off = 0, 0, _SHORT, _OFF

    def take(self) -> bool:
        """Whether this call is one of them."""
        self._left -= self._left > 0
        return self._left > 0

    def refused(self, refused: bool) -> None:
        """A draft was refused, or taken."""
        self._refusals = self._refusals + 1 if refused else 0
        if not refused:
            self._length = _SHORT
        elif self._refusals == _REFUSALS:
            self._refusals, self._left, self._length = 0, self._length, min(2 * self._length, _LONG)

    def off(self) -> None:
        """Drafts that were taken gave less than plain calls."""
        self._left, self._off = self._off, min(2 * self._off, _LONGEST_OFF)


class _Gain:
    """What drafts gave lately, as a multiple of what plain calls would have given in the same time."""

    def __init__(self) -> None:
        self._calls, self._tokens, self._instead = 0, 0.0, 0.0

    def pays(self, rate: float, tokens: int, seconds: float) -> bool:
        """Count a call, where plain ones give tokens at some rate; whether the drafts of late are worth making."""
        self._calls += 1
        self._tokens, self._instead = self._tokens * _KEPT + tokens, self._instead * _KEPT + rate * seconds
        if self._calls < _DRAFTED or self._tokens >= _PAID * self._instead:
            return True
        self._calls, self._tokens, self._instead = 0, 0.0, 0.0
        return False


class _Cost:
    """Seconds of a call by its width: as measured, on the line between what was, or on with it."""

    def __init__(self, rows: int) -> None:
        self._slope = _SLOPE * rows
        self._seconds: dict[int, float] = {}
        self._calls: Counter[int] = Counter()

    def took(self, width: int, seconds: float) -> None:
        self._calls[width] += 1
        known = self._seconds.setdefault(width, seconds)
        if self._calls[width] <= _TRIES:
            self._seconds[width] = min(known, seconds)
        else:
            self._seconds[width] = known + (seconds - known) * (_FASTER if seconds < known else _SLOWER)

    def __call__(self, width: int) -> float:
        known = sorted(item for item in self._seconds.items() if self._calls[item[0]] >= _TRIES)
        if not known:
            return 1 + self._slope * (width - 1)
        after = bisect(known, (width, 0.0))
        if after < len(known) and (after == 0 or known[after][0] == width):
            return known[after][1]
        below, seconds = known[after - 1]
        if after < len(known):
            above, more = known[after]
            return seconds + (more - seconds) * (width - below) / (above - below)
        fewest, least = known[0]
        slope = (seconds - least) / (below - fewest) if below > fewest else self._slope * least
        return seconds + max(slope, 0.0) * (width - below)
