"""Greedy search: of a batch, whose finished rows are removed every few steps, or of one source, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Decoding, Keep, Next
from lora_ft.export.runtime.decoding.types import TokenChunk

_CHUNK = 16  # steps between removals of finished rows, since a removal copies the cache


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the likeliest tokens."""
    rows = np.arange(len(ids))
    tokens = np.full((len(ids), 1), special.start)
    count, going = 0, rows
    while len(going) and count < options.max_new_tokens:
        steps: list[np.ndarray] = []
        ended = np.zeros(len(rows), bool)
        while not ended.all() and len(steps) < _CHUNK and count < options.max_new_tokens:
            tokens = yield Next(tokens, forbid_eos=count < options.min_new_tokens)
            steps.append(tokens)
            ended |= special.ended(tokens[:, 0])
            count += 1
        for row, new in zip(rows, np.concatenate(steps, axis=1), strict=True):
            yield TokenChunk(int(row), special.trim(new))
        going = np.flatnonzero(~ended)
        if 0 < len(going) < len(rows):
            rows, tokens = rows[going], tokens[going]
            yield Keep(going, sources=going)


def stream(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the likeliest tokens of one source, each as soon as it is chosen."""
    tokens = np.full((1, 1), special.start)
    for count in range(options.max_new_tokens):
        tokens = yield Next(tokens, forbid_eos=count < options.min_new_tokens)
        yield TokenChunk(0, tokens[0])
        if int(tokens[0, 0]) in special.ends:
            return
