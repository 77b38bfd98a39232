"""The log-probability of each allowed answer of one source, for a classification that reports all its labels.

The answers are read rather than generated: each row is one answer, and every step reads one token of each. A call has
at most `_ROWS` rows, so that many labels leave room for other requests; further answers follow in the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Decoding, Forget, Logits
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.processors import log_softmax

_ROWS = 8


def rows_of(options: Options) -> int:
    """Return the number of rows that the allowed answers need."""
    return max(1, min(_ROWS, len(options.allowed)))


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the tokens and the log-probability [1] of each allowed answer, in their order, for a single source."""
    answers = [(*answer, special.end) for answer in options.allowed]
    rows = rows_of(options)
    for begin in range(0, len(answers), rows):
        group = answers[begin : begin + rows]
        scores = np.zeros(len(group))
        longest = max(map(len, group))
        tokens = np.full((rows, 1), special.start)
        for place in range(longest):
            logits = (yield Logits(tokens))[:, -1]
            for row, answer in enumerate(group):
                if place < len(answer):
                    token = answer[place]
                    scores[row] += float(log_softmax(logits[row].astype(np.float64))[token])
                    tokens[row, 0] = token
        for row, answer in enumerate(group):
            yield TokenChunk(begin + row, np.array(answer), scores[row : row + 1])
        if begin + rows < len(answers):
            yield Forget(np.full(rows, longest))
