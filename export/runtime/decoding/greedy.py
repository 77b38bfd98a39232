"""Greedy search; finished rows are removed from the batch every few steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Model, Source

_CHUNK = 16  # steps between two removals of finished rows, since removing copies the cache


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: SpecialTokens
) -> Iterator[TokenChunk]:
    """Yield the likeliest tokens."""
    rows = np.arange(source.rows)
    cache = model.cache(source.rows)
    tokens = np.full((source.rows, 1), special.start)
    made, going = 0, rows
    while len(going) and made < options.max_new_tokens:
        steps: list[np.ndarray] = []
        done = np.zeros(len(rows), bool)
        while not done.all() and len(steps) < _CHUNK and made < options.max_new_tokens:
            tokens = model.step(source, cache, tokens, early=made < options.min_new_tokens)
            steps.append(tokens)
            done |= special.ended(tokens[:, 0])
            made += 1
        for row, new in zip(rows, np.concatenate(steps, axis=1), strict=True):
            yield TokenChunk(int(row), special.trim(new))
        going = np.flatnonzero(~done)
        if 0 < len(going) < len(rows):
            rows, tokens, source = rows[going], tokens[going], model.select_source(source, going)
            model.select_cache(cache, going)
