"""A sampled token is drawn from the probabilities that transformers' processors leave of the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Likeliest
from lora_ft.export.runtime.decoding.sampling import _draw, _next
from lora_ft.export.runtime.processors import processors

START, VOCABULARY = 0, 24
DRAWS = 200


class Steady:
    """A model that always has the same logits [b, vocabulary]."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def answer(self, step: Any) -> Any:
        """Answer the calls of one step of a strategy, and return its result."""
        result: Any = None
        try:
            while True:
                call = step.send(result)
                result = self._rank(call) if isinstance(call, Likeliest) else self._logits[:, None].copy()
        except StopIteration as end:
            return end.value

    def _rank(self, call: Likeliest) -> tuple[np.ndarray, np.ndarray]:
        logits = self._logits.copy()
        if call.before:
            call.before(logits)
        order = np.argsort(-logits, axis=1, kind="stable")[:, : min(call.count, VOCABULARY)]
        return np.take_along_axis(logits, order, axis=1), order


class Fixed:
    """A source of random numbers that returns the same number for every row."""

    def __init__(self, number: float) -> None:
        self._number = number

    def random(self, size: int) -> np.ndarray:
        return np.full(size, self._number)


def ours(
    logits: np.ndarray, tokens: np.ndarray, options: Options, special: SpecialTokens
) -> tuple[np.ndarray, np.ndarray]:
    """The share of evenly spaced numbers that draw each token [b, vocabulary]; its probability, NaN if none does."""
    edits, shares = processors(options, special), np.zeros_like(logits, np.float64)
    probabilities = np.full_like(shares, np.nan)
    model, rows = Steady(logits), np.arange(len(logits))
    for number in (np.arange(DRAWS) + 0.5) / DRAWS:
        rng: Any = Fixed(number)
        drawn, scores = model.answer(_next(tokens, options, edits, rng))
        shares[rows, drawn] += 1 / DRAWS
        probabilities[rows, drawn] = np.exp(scores)
    return shares, probabilities


def theirs(logits: np.ndarray, tokens: np.ndarray, options: Options, special: SpecialTokens) -> np.ndarray:
    """The same by transformers' processors and warpers, in the order of its `generate`."""
    chain = LogitsProcessorList()
    if options.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(1, options.min_new_tokens, list(special.ends)))
    if options.suppress_tokens:
        chain.append(SuppressTokensLogitsProcessor(list(options.suppress_tokens)))
    if options.temperature != 1:
        chain.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    scores = chain(torch.from_numpy(tokens), torch.from_numpy(logits).double())
    if options.top_p < 1:
        shares = torch.softmax(scores, -1).sort(-1, descending=True).values.cumsum(-1)
        assume(float((shares - options.top_p).abs().min()) > 1e-5)  # else rounding decides about a token
        scores = TopPLogitsWarper(options.top_p)(torch.from_numpy(tokens), scores)
    return torch.softmax(scores, -1).numpy()


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 3),
    generated=st.integers(0, 6),
    temperature=st.sampled_from([1e-3, 0.3, 1.0, 1.7, 50.0]) | st.floats(0.05, 9),
    top_k=st.sampled_from([0, 1, 2, 7, VOCABULARY, 50, 1000]),
    top_p=st.sampled_from([1e-6, 0.2, 0.7, 0.95, 1.0]) | st.floats(0.01, 1),
    least=st.integers(0, 6),
    ends=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4, unique=True),
    suppressed=st.lists(st.integers(1, VOCABULARY - 1), max_size=3),
    penalty=st.sampled_from([1.0, 1.0, 0.7, 1.5]),
)
def test_probabilities_are_transformers(
    seed: int,
    rows: int,
    generated: int,
    temperature: float,
    top_k: int,
    top_p: float,
    least: int,
    ends: list[int],
    suppressed: list[int],
    penalty: float,
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, VOCABULARY)).astype(np.float32)
    tokens = np.pad(rng.integers(2, VOCABULARY, (rows, generated)), ((0, 0), (1, 0)), constant_values=START)
    options = Options(
        max_new_tokens=12,
        min_new_tokens=least,
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        suppress_tokens=tuple(suppressed),
        repetition_penalty=penalty,
        output_scores=True,
    )
    special = SpecialTokens(START, tuple(ends), 0)
    expected = theirs(logits, tokens, options, special)
    shares, probabilities = ours(logits, tokens, options, special)
    np.testing.assert_allclose(shares, expected, atol=1 / DRAWS)  # an interval has one number more or less
    np.testing.assert_allclose(probabilities, np.where(shares > 0, expected, np.nan), rtol=1e-3, atol=1e-6)


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_extreme_numbers_draw_tokens_that_are_possible(possible: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, (2, possible))
    impossible = np.full((2, 5), -np.inf)
    padded = np.concatenate([impossible, scores, impossible], axis=1)
    for number in (0.0, np.nextafter(1, 0)):
        source: Any = Fixed(number)
        assert np.isfinite(padded[[0, 1], _draw(padded, source)]).all()
