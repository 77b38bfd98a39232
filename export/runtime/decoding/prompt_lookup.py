"""Prompt lookup: greedy search that emits several tokens a call, by checking drafts copied from the source.

The last tokens of the answer are searched for in the source and in the answer itself; the tokens that follow them there
are the draft. One decoder call checks the whole draft, so the answer equals that of greedy search
(apoorvumang/prompt-lookup-decoding). A step is memory-bound: it waits for weights, so a rejected draft costs little
more than a plain step. The limit depends on machine, precision and batch, so the cost of calls and the share of
accepted drafts are estimated while generating, once for all calls of a model (`draft_length`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.draft_length import LONGEST, DraftLengthController
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Model, Source

_NGRAM = 3  # longest sequence that is searched for, in tokens
_PACES: WeakKeyDictionary[Model, DraftLengthController] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _pace_of(model: Model) -> DraftLengthController:
    with _LOCK:
        return _PACES.setdefault(model, DraftLengthController())


def _unlock() -> None:
    """Replace locks in a forked child, which lacks the threads that hold them; estimates stay valid."""
    global _LOCK
    _LOCK = threading.Lock()
    for pace in list(_PACES.values()):
        pace.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: SpecialTokens
) -> Iterator[TokenChunk]:
    """Yield the likeliest tokens, several a call."""
    rows = [_Row(i, row.tolist(), special.start) for i, row in enumerate(ids)]
    cache = model.cache(len(rows))
    pace = _pace_of(model)
    going = rows
    while going:
        drafts, width = {}, 1
        if not pace.rests(len(rows)):
            drafts = {row.number: row.draft(options.max_new_tokens - row.made - 1) for row in going}
            width = pace.width(len(rows), [(row.found, len(drafts[row.number])) for row in going])
        tokens = np.array([[row.last] for row in rows])
        if width > 1:
            tokens = np.pad(tokens, ((0, 0), (0, width - 1)), constant_values=special.pad)
            for i, row in enumerate(rows):
                draft = drafts.get(row.number, [])[: width - 1]
                tokens[i, 1 : 1 + len(draft)] = draft
        began = time.perf_counter()
        best = model.step(source, cache, tokens)
        seconds = time.perf_counter() - began
        pace.took(len(rows), width, seconds)
        if width == 1:  # finished rows are ignored
            for i, row in enumerate(rows):
                if row.going:
                    row.extend(best[i].tolist())
                    yield TokenChunk(row.number, best[i])
        else:
            agreed = np.full(len(rows), -1)  # finished rows keep no token
            for i, row in enumerate(rows):
                if row.going:
                    draft = drafts[row.number][: width - 1]
                    agreed[i] = _agreeing(draft, best[i])
                    pace.accepted(row.found, int(agreed[i]), len(draft))
                    new = special.trim(best[i, : agreed[i] + 1])
                    row.extend(new.tolist())
                    yield TokenChunk(row.number, new)
            pace.gave(len(rows), seconds, len(going), int(agreed.sum()) + len(rows))
            cache.forget(width - 1 - agreed)
        for row in going:
            row.going = row.last not in special.ends and row.made < options.max_new_tokens
        going = [row for row in going if row.going]
        if going and 4 * len(going) <= 3 * len(rows):  # removing rows copies all that remain
            chosen = np.array([i for i, row in enumerate(rows) if row.going])
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
        going: whether it has not ended.
        found: how many tokens the last look-up matched, 0 for none.
    """

    def __init__(self, number: int, source: list[int], start: int) -> None:
        self.number, self.last, self.made, self.going, self.found = number, start, 0, True, 0
        self._text = list(source)  # and the answer behind it
        self._source_length = len(source)
        self._after: dict[tuple[int, ...], list[int]] = {}  # where in the text each sequence has ended
        self._known = 1  # so many tokens of the text are among them
        self._cursor = 0  # where in the source the answer last was

    def extend(self, tokens: list[int]) -> None:
        """Append to the answer."""
        self._text += tokens
        self.made += len(tokens)
        self.last = tokens[-1]

    def draft(self, most: int) -> list[int]:
        """What may come next, at most so many tokens."""
        self.found = 0
        for i in range(self._known, len(self._text)):
            answered = i - self._source_length
            least, most_known = (1, i) if answered < 0 else (2, answered)  # a single token of an answer says little
            for n in range(least, min(_NGRAM, most_known) + 1):
                self._after.setdefault(tuple(self._text[i - n : i]), []).append(i)
        self._known = len(self._text)
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
