"""Decoding strategies: one module per strategy, all with the same signature, selected by the options.

greedy         the likeliest token
prompt_lookup  the same tokens, several per call, by checking drafts copied from the source
constrained    greedy search among the allowed answers
consensus      the sample that agrees most with the others
sampling       one token per call: sampling, edited logits, streaming, scores
beam           beam search
label_scores   the log-probability of each allowed answer

A strategy yields the calls of the model that it needs (`calls`), so it serves one batch as well as a scheduler of many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.cache import Source
from lora_ft.export.runtime.decoding import beam, consensus, constrained, greedy, prompt_lookup, sampling
from lora_ft.export.runtime.decoding.calls import Decoding, run
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Model

# (ids of each source, options, special tokens) -> the strategy at work
Strategy = Callable[[Sequence[np.ndarray], Options, SpecialTokens], Decoding]

__all__ = ["Decoding", "SpecialTokens", "Strategy", "TokenChunk", "decode", "rows_of", "strategy"]


def strategy(options: Options, *, stream: bool = False) -> Strategy:
    """Return the strategy for these options; with `stream`, one that yields tokens as soon as they are chosen."""
    if options.num_beams > 1:
        return beam.search
    if options.mbr > 1 and options.do_sample:
        return consensus.search
    if options.allowed and replace(options, allowed=()).plain:
        return constrained.search
    if not options.plain:
        return sampling.search
    if options.prompt_lookup and not options.min_new_tokens:
        return prompt_lookup.search
    return greedy.stream if stream else greedy.search


def rows_of(options: Options) -> int:
    """Return the number of rows that each source needs: its beams, its answers or its samples."""
    return max(options.num_beams, options.num_return_sequences, options.mbr if options.do_sample else 1)


def decode(
    model: Model,
    source: Source,
    ids: Sequence[np.ndarray],
    options: Options,
    special: SpecialTokens,
    *,
    stream: bool = False,
) -> Iterator[TokenChunk]:
    """Yield the answers to encoded sources, which have the model to themselves.

    Args:
        model: Graphs of the bundle.
        source: Encoded sources.
        ids: Token ids of each source, int64 [s].
        options: Options of all sources.
        special: Special tokens of the model.
        stream: Yield tokens as soon as they are chosen.
    """
    return run(model, source, rows_of(options), strategy(options, stream=stream)(ids, options, special))
