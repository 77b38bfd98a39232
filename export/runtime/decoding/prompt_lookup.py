"""Prompt lookup: greedy search that yields several tokens per call, by checking drafts of source and phrases.

A draft is built token by token. Each token comes from the better of two origins, by the share of accepted tokens:

- a copy: the last tokens of the answer are searched for in the source and in the answer itself, and the draft goes on
  with the tokens that follow them there (apoorvumang/prompt-lookup-decoding). Where the answer has replaced a token of
  the source, the copy resumes behind that token, and a new answer starts where the one before it started;
- phrases of the training answers, if the bundle has them (`runtime.phrases`).

One decoder call checks the whole draft. A step of the graphs is memory-bound, so checking a draft costs little more
than a plain step; with the kernel, each further token costs a third of one. Where rows are independent
(`Precision.independent`), the answer equals that of greedy search, since the graph `draft` and the kernel return the
bits of single steps. Elsewhere, a near-tie may be decided otherwise.

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
from lora_ft.export.runtime.decoding.draft_length import (
    EIGHTHS,
    LONGEST,
    MATCHED,
    DraftLengthController,
    Evidence,
)
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.phrases import LENGTH

_NGRAM = 3  # longest sequence that is searched for, in tokens
_UNLIKELY = 0.1  # a draft ends where it is accepted less often; a further token costs a tenth of a plain call


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the likeliest tokens, several per call."""
    pace = yield DraftLengths()
    rows = [_Row(i, row.tolist(), special.start, pace) for i, row in enumerate(ids)]
    going = rows
    while going:
        began, width = time.perf_counter(), 1
        searched = not pace.rests(len(rows))
        for row in going:
            row.draft(options.max_new_tokens - row.made - 1 if searched else 0)
        if searched:
            width = pace.width(len(rows), [[pace.share(each) for each in row.evidence] for row in going])
        tokens = np.array([[row.last] for row in rows])
        if width > 1:
            tokens = np.pad(tokens, ((0, 0), (0, width - 1)), constant_values=special.pad)
            for i, row in enumerate(rows):
                draft = row.drafted[: width - 1] if row.going else []
                tokens[i, 1 : 1 + len(draft)] = draft
        called = time.perf_counter()
        call = Next(tokens)
        best = yield call
        ended, width = time.perf_counter(), best.shape[1]
        if not call.shared:
            pace.took(len(rows), width, ended - called)
        if width == 1:  # finished rows are ignored
            for i, row in enumerate(rows):
                if row.going:
                    if row.drafted:  # tells how good the evidence is, though it was not used
                        pace.accepted(row.evidence[:1], int(row.drafted[0] == best[i, 0]))
                    row.extend(best[i].tolist())
                    yield TokenChunk(row.number, best[i])
        else:
            agreed = np.full(len(rows), -1)  # finished rows keep no token
            for i, row in enumerate(rows):
                if row.going:
                    agreed[i] = _agreeing(row.drafted[: width - 1], best[i])
                    pace.accepted(row.evidence[: width - 1], int(agreed[i]))
                    new = special.trim(best[i, : agreed[i] + 1])
                    row.extend(new.tolist())
                    yield TokenChunk(row.number, new)
            pace.gave(len(rows), ended - began, len(going), int(agreed.sum()) + len(rows))
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
        drafted, evidence: Tokens of the last draft, and the evidence for each.
    """

    def __init__(self, number: int, source: list[int], start: int, pace: DraftLengthController) -> None:
        self.number, self.last, self.made, self.going = number, start, 0, True
        self.drafted: list[int] = []
        self.evidence: list[Evidence] = []
        self._pace = pace
        self._text = list(source)  # the source, then the answer
        self._source_length = len(source)
        self._start = start
        self._after: dict[tuple[int, ...], list[int]] = {}  # end positions in the text, by sequence of tokens
        self._known = 1  # number of tokens of the text that are indexed in `_after`
        self._cursor = -1  # position in the source that the last match led to, and the length of the answer then
        self._cursor_made = 0

    def extend(self, tokens: list[int]) -> None:
        """Append tokens to the answer."""
        self._text += tokens
        self.made += len(tokens)
        self.last = tokens[-1]

    def draft(self, most: int) -> None:
        """Draft the next tokens, at most `most`."""
        self.drafted, self.evidence = [], []
        likely, most = 1.0, min(most, LONGEST)
        if most <= 0:
            return
        self._index()
        context = [self._start, *self._text[self._source_length :]][-LENGTH:]
        copy = self._copy()
        while len(self.drafted) < most:
            choice: tuple[float, int, Evidence] | None = None
            if copy:
                place, evidence = copy
                choice = self._pace.share(evidence), self._text[place], evidence
            phrase = self._pace.phrases.find(context)
            if phrase:
                evidence = ("phrase", min(int(phrase[1] * EIGHTHS), EIGHTHS - 1))
                share = self._pace.share(evidence)
                if choice is None or share > choice[0]:
                    choice = share, phrase[0], evidence
            if choice is None:
                return
            share, token, evidence = choice
            likely *= share
            if self.drafted and likely < _UNLIKELY:
                return
            self.drafted.append(token)
            self.evidence.append(evidence)
            context.append(token)
            copy = self._go_on(copy, token) or self._find(context[1:])

    def _index(self) -> None:
        """Index new tokens of the text."""
        for i in range(self._known, len(self._text)):
            answered = i - self._source_length
            least, most_known = (1, i) if answered < 0 else (2, answered)  # a single token of an answer predicts little
            for n in range(least, min(_NGRAM, most_known) + 1):
                self._after.setdefault(tuple(self._text[i - n : i]), []).append(i)
        self._known = len(self._text)

    def _copy(self) -> tuple[int, Evidence] | None:
        """Return the place in the text to copy from next, and the evidence for it, or None."""
        match = self._find(self._text[self._source_length :][-_NGRAM:])
        if match:
            if match[0] < self._source_length:
                if self._cursor < 0:
                    self._pace.start = max(0, match[0] - self.made)
                self._cursor, self._cursor_made = match[0], self.made
            return match
        place, origin = self._cursor + self.made - self._cursor_made, "resume"
        if not self.made:
            place, origin = self._pace.start, "start"
        elif self._cursor < 0:
            return None
        return (place, (origin, 0)) if 0 <= place < self._source_length else None

    def _find(self, tokens: list[int]) -> tuple[int, Evidence] | None:
        """Return the place in the text after the longest sequence that ends these tokens, and its length."""
        for n in range(min(_NGRAM, len(tokens)), 0, -1):
            places = self._after.get(tuple(tokens[-n:]))
            if places:
                # an answer follows its source: the next occurrence is likelier than an earlier one
                place = next((i for i in places if i >= self._cursor), places[-1])
                return place, ("copy", n)
        return None

    def _go_on(self, copy: tuple[int, Evidence] | None, token: int) -> tuple[int, Evidence] | None:
        """Return the next place of a copy and its evidence, if the copy has the drafted token, or else None."""
        if copy is None or self._text[copy[0]] != token:
            return None
        place, (origin, degree) = copy
        end = self._source_length if place < self._source_length else len(self._text)
        degree = min(degree + 1, MATCHED) if origin == "copy" else 1
        return (place + 1, ("copy", degree)) if place + 1 < end else None
