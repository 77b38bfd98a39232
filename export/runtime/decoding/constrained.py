"""Greedy search among allowed answers. Once only one answer is possible, its remaining tokens need no step.

Only the logits of tokens of the answers are needed, so the model may leave out the rest of its head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.trie import trie_of
from lora_ft.export.runtime.decoding.calls import Decoding, Keep, Logits
from lora_ft.export.runtime.decoding.types import TokenChunk


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the likeliest token that continues an allowed answer, step by step. Decided rows leave the batch."""
    trie = trie_of(options.allowed, special.end)
    columns = np.array(trie.tokens)
    place = {token: i for i, token in enumerate(trie.tokens)}
    rows = np.arange(len(ids))
    shared = trie.forced([])
    if shared:
        for row in rows:
            yield TokenChunk(int(row), np.array(shared))
    if shared[-1:] == [special.end]:  # only one answer is allowed
        return
    answers = [list(shared) for _ in rows]
    tokens = np.tile([special.start, *shared], (len(ids), 1))
    while len(rows):
        logits = (yield Logits(tokens, columns))[:, -1]
        decided = np.zeros(len(rows), bool)
        for i, row in enumerate(rows):
            kinds = trie.after(answers[i])
            new = [kinds[int(logits[i, [place[kind] for kind in kinds]].argmax())]]
            forced = trie.forced([*answers[i], *new])
            decided[i] = [*new, *forced][-1] == special.end
            if decided[i]:
                new += forced
            answers[i] += new
            yield TokenChunk(int(row), np.array(new))
        going = np.flatnonzero(~decided)
        if 0 < len(going) < len(rows):
            yield Keep(going, sources=going)
        rows, answers = rows[going], [answers[i] for i in going]
        tokens = np.array([[row[-1]] for row in answers])
