"""Decoding one token per call, for sampling, greedy search over edited logits, scores and streaming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.model import Cache, Model, Source
from lora_ft.export.runtime.processors import Processor, editing, log_softmax, processors, softmax

_NONE = np.empty(0)


def search(
    model: Model, source: Source, ids: Sequence[np.ndarray], options: Options, special: SpecialTokens
) -> Iterator[TokenChunk]:
    """Yield each answer token by token. A source leaves the batch once all its answers have ended."""
    copies = options.num_return_sequences
    rng = np.random.default_rng(options.seed)
    edits = processors(options, special)
    answers = np.arange(source.rows * copies)
    cache = model.cache(len(answers))
    tokens = np.full((len(answers), options.max_new_tokens + 1), special.pad)
    tokens[:, 0] = special.start
    going, numbers = np.ones(len(answers), bool), list(enumerate(answers.tolist()))
    for made in range(1, options.max_new_tokens + 1):
        chosen, scores = _next(model, source, cache, tokens[:, :made], options, edits, rng)
        for i, answer in numbers:
            yield TokenChunk(answer, chosen[i : i + 1], scores[i : i + 1] if options.output_scores else None)
        tokens[:, made] = chosen
        ended = special.ended(chosen)
        if not ended.any():
            continue
        going = going & ~ended
        if not going.any():
            return
        wanted = going.reshape(-1, copies).any(axis=1)
        if not wanted.all():
            kept = np.flatnonzero(np.repeat(wanted, copies))
            source = model.select_source(source, np.flatnonzero(wanted))
            model.select_cache(cache, kept)
            answers, tokens, going = answers[kept], tokens[kept], going[kept]
        numbers = [(i, int(answers[i])) for i in np.flatnonzero(going).tolist()]


def _next(
    model: Model,
    source: Source,
    cache: Cache,
    tokens: np.ndarray,
    options: Options,
    edits: list[Processor],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the next token of each row [b] and, if requested, its log-probability [b]."""
    last = tokens[:, -1:]
    if options.plain and not edits:
        return model.step(source, cache, last)[:, -1], _NONE
    edit = editing(edits, tokens)
    if candidates := options.top_k if options.do_sample else 1:
        normal = options.output_scores and not options.do_sample  # scores of samples are relative to the candidates
        scores, kinds = model.likeliest(source, cache, last, candidates, normal=normal, before=edit)
    else:
        scores = model.logits(source, cache, last, copy=False)[:, -1]
        if edit:
            edit(scores)
        kinds = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    place, score = _sample(scores, options, rng) if options.do_sample else (np.zeros(len(tokens), int), scores[:, 0])
    return kinds[np.arange(len(place)), place], score


def _sample(scores: np.ndarray, options: Options, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from the candidates [b, k]. Return the place [b] and, if requested, its log-probability among them."""
    scores = np.asarray(scores, np.float64) / options.temperature
    if options.top_p < 1:  # keep the fewest likeliest tokens with a total probability of top_p (arXiv 1904.09751)
        order = np.argsort(-scores, axis=1, kind="stable")
        probabilities = softmax(np.take_along_axis(scores, order, axis=1))
        before = np.cumsum(probabilities, axis=1) - probabilities
        rows = np.arange(len(scores))[:, None]
        scores[rows, order] = np.where(before < options.top_p, scores[rows, order], -np.inf)
    place = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)  # Gumbel-max: a draw from the softmax
    return place, log_softmax(scores)[np.arange(len(place)), place] if options.output_scores else _NONE
