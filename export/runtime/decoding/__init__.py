"""Decoding strategies, one module each behind one signature, and the choice among them by options.

greedy         the likeliest token
prompt_lookup  the same tokens, several a call: drafts from the source are checked
constrained    the likeliest of the allowed answers
sampling       one token a call: sampling, edited logits, streaming, scores
beam           beam search
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding import beam, constrained, greedy, prompt_lookup, sampling
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Model, Source

Strategy = Callable[[Model, Source, Sequence[np.ndarray], Options, SpecialTokens], Iterator[TokenChunk]]

__all__ = ["SpecialTokens", "Strategy", "TokenChunk", "strategy"]


def strategy(options: Options, *, stream: bool = False) -> Strategy:
    """Return the strategy for these options; with `stream`, one that yields tokens as soon as they are chosen."""
    if options.num_beams > 1:
        return beam.search
    if options.allowed and replace(options, allowed=()).plain:
        return constrained.search
    if not options.plain:
        return sampling.search
    if options.prompt_lookup and not options.min_new_tokens:
        return prompt_lookup.search
    return sampling.search if stream else greedy.search
