"""Prompt lookup: greedy search that makes several tokens a call, by drafts copied out of the source.

The last tokens of the answer are looked for in the source; what follows them there is the draft. One call of the
decoder checks the whole draft, so what comes out is what greedy search gives (apoorvumang/prompt-lookup-decoding). A
rejected draft costs only a little more than a plain step, as a step waits for weights, not for arithmetic; how much
more is measured as it goes, and drafts are as long as that and the share accepted so far make worth while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from export.runtime.decoding.piece import Piece, Special
from export.runtime.model import Cache, Model, RaggedCache, Source
from export.runtime.options import Options
from export.runtime.text import trim

_NGRAM = 3  # most tokens that are looked for
_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
_WEIGHT = 0.2  # of the newest observation in a running mean


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: Special
) -> Iterator[Piece]:
    """The likeliest token, again and again, several a call."""
    rows = [_Row(i, row.tolist(), special.start) for i, row in enumerate(ids)]
    cache: Cache | RaggedCache = model.cache(1) if len(rows) == 1 else model.ragged_cache(len(rows))
    pace = _Pace()
    while rows:
        drafts = [row.draft(pace, options.max_new_tokens - row.made - 1) for row in rows]
        width = 1 + max(map(len, drafts))
        tokens = np.full((len(rows), width), special.pad)
        for i, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            tokens[i, : 1 + len(draft)] = [row.last, *draft]
        began = time.perf_counter()
        best = model.step(source, cache, tokens)
        pace.took(width, time.perf_counter() - began)
        agreed = np.array([_agreeing(draft, chosen) for draft, chosen in zip(drafts, best, strict=True)])
        cache.forget(width - 1 - agreed)
        for row, draft, accepted, chosen in zip(rows, drafts, agreed.tolist(), best, strict=True):
            pace.accepted(row.found, accepted, len(draft))
            new = trim(chosen[: accepted + 1], special.end)
            row.extend(new.tolist())
            yield Piece(row.number, new)
        going = [i for i, row in enumerate(rows) if row.last != special.end and row.made < options.max_new_tokens]
        if 0 < len(going) < len(rows):
            chosen = np.array(going)
            source = model.select_source(source, chosen)
            model.select_cache(cache, chosen)
        rows = [rows[i] for i in going]


def _agreeing(draft: Sequence[int], best: np.ndarray) -> int:
    """How many tokens of the draft are what the model chose."""
    same = 0
    while same < len(draft) and draft[same] == best[same]:
        same += 1
    return same


class _Row:
    """One source and its answer so far.

    Attributes:
        number: of the source.
        last: token of the answer.
        made: how many tokens it has.
        found: how many tokens the last look-up matched, 0 for none.
    """

    def __init__(self, number: int, source: list[int], start: int) -> None:
        self.number, self.last, self.made, self.found = number, start, 0, 0
        self._source = source
        self._answer: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}  # where in the source each sequence ends
        self._cursor = 0  # where in the source the answer last was
        for n in range(1, _NGRAM + 1):
            for i in range(n, len(source)):
                self._after.setdefault(tuple(source[i - n : i]), []).append(i)

    def extend(self, tokens: list[int]) -> None:
        """Append to the answer."""
        self._answer += tokens
        self.made += len(tokens)
        self.last = tokens[-1]

    def draft(self, pace: _Pace, most: int) -> list[int]:
        """What may come next, at most so many tokens."""
        self.found = 0
        for n in range(min(_NGRAM, self.made), 0, -1):
            places = self._after.get(tuple(self._answer[-n:]))
            if places:
                length = min(pace.length(n), most)
                if not length:
                    return []
                # an answer follows its source: the next occurrence is likelier than an earlier one
                place = next((i for i in places if i >= self._cursor), places[-1])
                self.found, self._cursor = n, place
                return self._source[place : place + length]
        return []


class _Pace:
    """How long drafts should be: what share of them is accepted, and what a longer call costs."""

    def __init__(self) -> None:
        self._share = {1: 0.5, 2: 0.7, 3: 0.8}  # of drafted tokens accepted, by the tokens that were matched
        self._step = 0.0  # seconds of a call with one token
        self._slope = 0.06  # what every further token adds, as a share of that
        self._idle = 0

    def length(self, found: int) -> int:
        """The length with the most tokens for the time, now and then one more than that to learn from."""
        share = min(self._share[found], 0.97)
        rate = {n: (1 - share ** (n + 1)) / (1 - share) / (1 + self._slope * n) for n in _LENGTHS}
        best = max(rate, key=rate.__getitem__)
        self._idle = 0 if best else self._idle + 1
        return best or (1 if self._idle % 16 == 0 else 0)

    def took(self, width: int, seconds: float) -> None:
        """A call with so many tokens a row took so long."""
        if width == 1:
            self._step += (seconds - self._step) * (_WEIGHT if self._step else 1)
        elif self._step:
            slope = min(max((seconds / self._step - 1) / (width - 1), 0.005), 1.0)
            self._slope += (slope - self._slope) * _WEIGHT

    def accepted(self, found: int, accepted: int, drafted: int) -> None:
        """So many tokens of a draft were accepted."""
        if drafted:
            trials = min(accepted + 1, drafted)  # what follows the first rejected token was not tried
            self._share[found] += (accepted / trials - self._share[found]) * _WEIGHT
