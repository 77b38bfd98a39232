"""Minimum-Bayes-risk decoding: samples of each source side by side, of which the consensus is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora_ft.core.consensus import chosen
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding import sampling
from lora_ft.export.runtime.decoding.calls import Decoding
from lora_ft.export.runtime.decoding.types import TokenChunk


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield for each source the one of `mbr` samples that agrees most with the others, once all have ended."""
    copies = options.mbr
    samples: list[list[TokenChunk]] = [[] for _ in range(len(ids) * copies)]
    decoding = sampling.search(ids, replace(options, mbr=0, num_return_sequences=copies), special)
    result: Any = None
    while True:
        try:
            item = decoding.send(result)
        except StopIteration:
            break
        result = None
        if isinstance(item, TokenChunk):
            samples[item.answer].append(item)
        else:
            result = yield item
    for source in range(len(ids)):
        chunks = samples[source * copies : (source + 1) * copies]
        tokens = [np.concatenate([chunk.tokens for chunk in sample]) for sample in chunks]
        best = chosen(tokens, options.utility, special)
        scores = [chunk.scores for chunk in chunks[best] if chunk.scores is not None]
        yield TokenChunk(source, tokens[best], np.concatenate(scores) if scores else None)
