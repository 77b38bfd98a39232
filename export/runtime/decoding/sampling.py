"""Decoding with one token per call: sampling, greedy search over edited logits, scores."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Call, Decoding, Keep, Likeliest, Logits
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.processors import Processor, editing, log_softmax, processors, softmax

_NONE = np.empty(0)


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield each answer token by token. A source leaves the batch once all its answers have ended."""
    copies = options.num_return_sequences
    rng = np.random.default_rng(options.seed)
    edits = processors(options, special)
    answers = np.arange(len(ids) * copies)
    tokens = np.full((len(answers), options.max_new_tokens + 1), special.pad)
    tokens[:, 0] = special.start
    going, numbers = np.ones(len(answers), bool), list(enumerate(answers.tolist()))
    for length in range(1, options.max_new_tokens + 1):
        next_tokens, scores = yield from _next(tokens[:, :length], options, edits, rng)
        for i, answer in numbers:
            yield TokenChunk(answer, next_tokens[i : i + 1], scores[i : i + 1] if options.output_scores else None)
        tokens[:, length] = next_tokens
        ended = special.ended(next_tokens)
        if not ended.any():
            continue
        going = going & ~ended
        if not going.any():
            return
        active = going.reshape(-1, copies).any(axis=1)
        if not active.all():
            places = np.flatnonzero(np.repeat(active, copies))
            yield Keep(places, sources=np.flatnonzero(active))
            answers, tokens, going = answers[places], tokens[places], going[places]
        numbers = [(i, int(answers[i])) for i in np.flatnonzero(going).tolist()]


def _next(
    tokens: np.ndarray, options: Options, edits: list[Processor], rng: np.random.Generator
) -> Generator[Call, Any, tuple[np.ndarray, np.ndarray]]:
    """Return the next token of each row [b] and, if requested, its log-probability [b]."""
    last = tokens[:, -1:]
    edit = editing(edits, tokens)
    if candidates := options.top_k if options.do_sample else 1:
        scored = options.output_scores and not options.do_sample  # a sample's score is relative to the candidates
        scores, kinds = yield Likeliest(last, candidates, log_softmax=scored, before=edit)
    else:
        scores = (yield Logits(last))[:, -1]
        if edit:
            edit(scores)
        kinds = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    place, score = _sample(scores, options, rng) if options.do_sample else (np.zeros(len(tokens), int), scores[:, 0])
    return kinds[np.arange(len(place)), place], score


def _sample(scores: np.ndarray, options: Options, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one of the candidates [b, k]. Return its place [b] and, if requested, its log-probability [b]."""
    scores = np.asarray(scores, np.float64) / options.temperature
    if options.top_p < 1:  # keep the fewest likeliest tokens with a total probability of top_p (arXiv 1904.09751)
        order = np.argsort(-scores, axis=1, kind="stable")
        probabilities = softmax(np.take_along_axis(scores, order, axis=1))
        before = np.cumsum(probabilities, axis=1) - probabilities
        rows = np.arange(len(scores))[:, None]
        scores[rows, order] = np.where(before < options.top_p, scores[rows, order], -np.inf)
    place = _draw(scores, rng)
    return place, log_softmax(scores)[np.arange(len(place)), place] if options.output_scores else _NONE


def _draw(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a place of each row [b, k] from its softmax.

    One random number for each row finds the place in its cumulative sums. A random number for each token (Gumbel-max)
    takes longer than the step of a small model. Row by row, everything stays in the processor's cache.
    """
    places = np.empty(len(scores), np.int64)
    for i, (row, drawn) in enumerate(zip(scores, rng.random(len(scores)), strict=True)):
        sums = np.cumsum(np.exp(row - row.max()))
        places[i] = sums.searchsorted(min(drawn * sums[-1], np.nextafter(sums[-1], 0)), side="right")
    return places
