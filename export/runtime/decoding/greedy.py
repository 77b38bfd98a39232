"""Greedy search in the graph's own loop; rows that have ended leave the batch between calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from export.runtime.decoding.piece import Piece, Special
from export.runtime.model import Model, Source
from export.runtime.options import Options
from export.runtime.text import trim

_CHUNK = 16  # steps between looks at which rows have ended; a single row never waits for another


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: Special
) -> Iterator[Piece]:
    """The likeliest token, again and again."""
    rows = np.arange(source.rows)
    cache = model.empty(source.rows)
    tokens = np.full((source.rows, 1), special.start)
    made = 0
    while True:
        left = options.max_new_tokens - made
        out = model.greedy(
            source, cache, tokens, max(0, options.min_new_tokens - made), left if len(rows) == 1 else min(_CHUNK, left)
        )
        made += out.shape[1]
        for row, new in zip(rows, out, strict=True):
            yield Piece(int(row), trim(new, special.end))
        going = np.flatnonzero((out != special.end).all(axis=1))
        if len(going) == 0 or made == options.max_new_tokens:
            return
        tokens = out[going, -1:]
        if len(going) < len(rows):
            rows, source = rows[going], model.select_source(source, going)
            model.select_cache(cache, going)
