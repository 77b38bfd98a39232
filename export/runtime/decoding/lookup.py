"""Prompt lookup: greedy search that makes several tokens a call, by drafts copied out of the source.

The last tokens of the answer are looked for in the source, and in the answer itself; what follows them there is the
draft. One call of the decoder checks the whole draft, so what comes out is what greedy search gives
(apoorvumang/prompt-lookup-decoding). While a step waits for weights and not for arithmetic, a rejected draft costs only
a little more than a plain step. Where that ends depends on machine, precision and batch, so both what calls cost and
what share of drafts is accepted are learnt as it goes, once for all that a model answers (`pace`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from export.runtime.decoding.pace import LONGEST, Pace
from export.runtime.decoding.piece import Piece, Special
from export.runtime.model import Model, Source
from export.runtime.options import Options
from export.runtime.text import trim

_NGRAM = 3  # most tokens that are looked for
_PACES: WeakKeyDictionary[Model, Pace] = WeakKeyDictionary()


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: Special
) -> Iterator[Piece]:
    """The likeliest token, again and again, several a call."""
    rows = [_Row(i, row.tolist(), special.start) for i, row in enumerate(ids)]
    cache = model.cache(len(rows))
    pace = _PACES.setdefault(model, Pace())
    going = rows
    while going:
        if pace.rests(len(rows)):
            drafts, width = {row.number: list[int]() for row in going}, 1
        else:
            drafts = {row.number: row.draft(options.max_new_tokens - row.made - 1) for row in going}
            width = pace.width(len(rows), [(row.found, len(drafts[row.number])) for row in going])
        tokens = np.full((len(rows), width), special.pad)
        for i, row in enumerate(rows):
            known = [row.last, *drafts.get(row.number, [])][:width]
            tokens[i, : len(known)] = known
        began = time.perf_counter()
        best = model.step(source, cache, tokens)
        pace.took(len(rows), width, time.perf_counter() - began)
        agreed = np.full(len(rows), -1)  # of a row that has ended, not even the first token stays
        for i, row in enumerate(rows):
            if row.number in drafts:
                draft = drafts[row.number][: width - 1]
                agreed[i] = _agreeing(draft, best[i])
                pace.accepted(row.found, int(agreed[i]), len(draft))
                new = trim(best[i, : agreed[i] + 1], special.end)
                row.extend(new.tolist())
                yield Piece(row.number, new)
        cache.forget(width - 1 - agreed)
        going = [row for row in going if row.last != special.end and row.made < options.max_new_tokens]
        if going and 4 * len(going) <= 3 * len(rows):  # leaving copies all that stay
            chosen = np.array([i for i, row in enumerate(rows) if row in going])
            source, rows = model.select_source(source, chosen), going
            model.select_cache(cache, chosen)


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
        self._text = list(source)  # and the answer behind it
        self._source_length = len(source)
        self._after: dict[tuple[int, ...], list[int]] = {}  # where in the text each sequence has ended
        self._cursor = 0  # where in the source the answer last was
        for n in range(1, _NGRAM + 1):
            for i in range(n, len(source)):
                self._after.setdefault(tuple(source[i - n : i]), []).append(i)

    def extend(self, tokens: list[int]) -> None:
        """Append to the answer."""
        for token in tokens:
            for n in range(2, min(_NGRAM, self.made) + 1):  # a single token of an answer says little of the next
                self._after.setdefault(tuple(self._text[-n:]), []).append(len(self._text))
            self._text.append(token)
            self.made += 1
        self.last = tokens[-1]

    def draft(self, most: int) -> list[int]:
        """What may come next, at most so many tokens."""
        self.found = 0
        for n in range(min(_NGRAM, self.made), 0, -1):
            places = self._after.get(tuple(self._text[-n:]))
            if places:
                # an answer follows its source: the next occurrence is likelier than an earlier one
                place = next((i for i in places if i >= self._cursor), places[-1])
                self.found, end = n, len(self._text)
                if place < self._source_length:
                    self._cursor, end = place, self._source_length
                return self._text[place : min(place + most, place + LONGEST, end)]
        return []
