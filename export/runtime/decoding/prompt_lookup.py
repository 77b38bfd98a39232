"""Prompt lookup: greedy search that yields several tokens per call, by checking drafts copied from the source.

The last tokens of the answer are searched for in the source and in the answer itself; the tokens that follow them there
are the draft. One decoder call checks the whole draft (apoorvumang/prompt-lookup-decoding). A step is memory-bound, so
checking a draft costs little more than a plain step. Where rows are independent (`Precision.independent`), the answer
equals that of greedy search, since the graph `draft` returns the bits of single steps. Elsewhere, a near-tie may be
decided otherwise.

The best draft length depends on machine, precision and batch. The cost of calls and the share of accepted tokens are
therefore estimated while generating, in one controller per model (`draft_length`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Decoding, DraftLengths, Forget, Keep, Next
from lora_ft.export.runtime.decoding.draft_length import LONGEST
from lora_ft.export.runtime.decoding.types import TokenChunk

_NGRAM = 3  # longest sequence that is searched for, in tokens


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the likeliest tokens, several per call."""
    rows = [_Row(i, row.tolist(), special.start) for i, row in enumerate(ids)]
    pace = yield DraftLengths()
    going = rows
    while going:
        drafts, width = {}, 1
        if not pace.rests(len(rows)):
            drafts = {row.number: row.draft(options.max_new_tokens - row.made - 1) for row in going}
            width = pace.width(len(rows), [(row.matched, len(drafts[row.number])) for row in going])
        tokens = np.array([[row.last] for row in rows])
        if width > 1:
            tokens = np.pad(tokens, ((0, 0), (0, width - 1)), constant_values=special.pad)
            for i, row in enumerate(rows):
                draft = drafts.get(row.number, [])[: width - 1]
                tokens[i, 1 : 1 + len(draft)] = draft
        began = time.perf_counter()
        call = Next(tokens)
        best = yield call
        seconds, width = time.perf_counter() - began, best.shape[1]
        if not call.shared:
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
                    pace.accepted(row.matched, int(agreed[i]), len(draft))
                    new = special.trim(best[i, : agreed[i] + 1])
                    row.extend(new.tolist())
                    yield TokenChunk(row.number, new)
            pace.gave(len(rows), seconds, len(going), int(agreed.sum()) + len(rows))
            yield Forget(width - 1 - agreed)
        for row in going:
            row.going = row.last not in special.ends and row.made < options.max_new_tokens
        going = [row for row in going if row.going]
        if going and 4 * len(going) <= 3 * len(rows):  # a removal copies all remaining rows
            active = np.array([i for i, row in enumerate(rows) if row.going])
            rows = going
            yield Keep(active, sources=active)


def _agreeing(draft: Sequence[int], best: np.ndarray) -> int:
    """Return the number of leading tokens of the draft that the model chose too."""
    same = 0
    while same < len(draft) and draft[same] == best[same]:
        same += 1
    return same


class _Row:
    """One source and its answer so far.

    Attributes:
        number: Number of the source.
        last: Last token of the answer.
        made: Length of the answer, in tokens.
        going: Whether the answer is unfinished.
        matched: Number of tokens that the last lookup matched, or 0.
    """

    def __init__(self, number: int, source: list[int], start: int) -> None:
        self.number, self.last, self.made, self.going, self.matched = number, start, 0, True, 0
        self._text = list(source)  # the source, then the answer
        self._source_length = len(source)
        self._after: dict[tuple[int, ...], list[int]] = {}  # end positions in the text, by sequence of tokens
        self._known = 1  # number of tokens of the text that are indexed in `_after`
        self._cursor = 0  # position in the source of the last match

    def extend(self, tokens: list[int]) -> None:
        """Append tokens to the answer."""
        self._text += tokens
        self.made += len(tokens)
        self.last = tokens[-1]

    def draft(self, most: int) -> list[int]:
        """Return a draft of the next tokens, at most `most`."""
        self.matched = 0
        for i in range(self._known, len(self._text)):
            answered = i - self._source_length
            least, most_known = (1, i) if answered < 0 else (2, answered)  # a single token of an answer predicts little
            for n in range(least, min(_NGRAM, most_known) + 1):
                self._after.setdefault(tuple(self._text[i - n : i]), []).append(i)
        self._known = len(self._text)
        for n in range(min(_NGRAM, self.made), 0, -1):
            places = self._after.get(tuple(self._text[-n:]))
            if places:
                # an answer follows its source: the next occurrence is likelier than an earlier one
                place = next((i for i in places if i >= self._cursor), places[-1])
                self.matched, end = n, len(self._text)
                if place < self._source_length:
                    self._cursor, end = place, self._source_length
                return self._text[place : min(place + most, place + LONGEST, end)]
        return []
