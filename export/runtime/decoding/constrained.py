"""Greedy search among allowed answers. Once a single answer is left, its remaining tokens need no step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.trie import Trie
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Model, Source


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: SpecialTokens
) -> Iterator[TokenChunk]:
    """Yield the likeliest token that continues an allowed answer, step by step. A decided row leaves the batch."""
    trie = Trie(options.allowed, special.end)
    rows = np.arange(source.rows)
    shared = trie.forced([])
    if shared:
        yield from (TokenChunk(int(row), np.array(shared)) for row in rows)
    if shared[-1:] == [special.end]:  # only one answer is allowed
        return
    cache = model.cache(source.rows)
    said = [list(shared) for _ in rows]
    tokens = np.tile([special.start, *shared], (source.rows, 1))
    while len(rows):
        logits = model.logits(source, cache, tokens, copy=False)[:, -1]
        decided = np.zeros(len(rows), bool)
        for i, row in enumerate(rows):
            kinds = trie.after(said[i])
            new = [kinds[int(logits[i, kinds].argmax())]]
            rest = trie.forced([*said[i], *new])
            decided[i] = [*new, *rest][-1] == special.end
            if decided[i]:
                new += rest
            said[i] += new
            yield TokenChunk(int(row), np.array(new))
        going = np.flatnonzero(~decided)
        if 0 < len(going) < len(rows):
            source = model.select_source(source, going)
            model.select_cache(cache, going)
        rows, said = rows[going], [said[i] for i in going]
        tokens = np.array([[row[-1]] for row in said])
