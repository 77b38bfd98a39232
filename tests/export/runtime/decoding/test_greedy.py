"""Greedy search in the graph's loop says what transformers' says, while rows leave the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.decoding import greedy
from lora_ft.export.runtime.decoding.calls import run
from lora_ft.export.runtime.decoding.greedy import _CHUNK
from tests.export.oracle import END, PAD
from tests.export.runtime.cases import Pair, words

LIMIT = 2 * _CHUNK + 8
PLAIN = {"prompt_lookup": False}


@pytest.mark.parametrize("limit", [1, 2, _CHUNK - 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK, LIMIT])
def test_answers_are_those_of_transformers(pair: Pair, limit: int) -> None:
    texts = words(limit, 10)
    assert pair.made(texts, max_new_tokens=limit, **PLAIN) == pair.expected(texts, max_new_tokens=limit)


@pytest.mark.parametrize("least", [1, 3, _CHUNK - 1, _CHUNK, _CHUNK + 1, LIMIT])
def test_answers_of_a_least_length_are_those_of_transformers(pair: Pair, least: int) -> None:
    texts, limits = words(0, 10), {"max_new_tokens": LIMIT, "min_new_tokens": least}
    answers = pair.made(texts, **limits, **PLAIN)
    assert answers == pair.expected(texts, **limits)
    for tokens, free in zip(answers, pair.made(texts, max_new_tokens=LIMIT, **PLAIN), strict=True):
        assert (tokens != free) == (free[-1] == END and len(free) <= least)
        assert len(tokens) >= min(least + 1, LIMIT)


@pytest.mark.parametrize("least", [0, _CHUNK + 2])
def test_answers_do_not_depend_on_the_batch(pair: Pair, least: int) -> None:
    limits = {"max_new_tokens": LIMIT, "min_new_tokens": least}
    texts = words(1, 12)
    together = pair.made(texts, **limits, **PLAIN)
    assert together == [pair.made([text], **limits, **PLAIN)[0] for text in texts]
    assert len({len(tokens) for tokens in together}) > 2


class Watched:
    """A model that remembers what its steps were watched."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.forbid_eos: list[bool] = []
        self._step = model.step
        monkeypatch.setattr(model, "step", self._ask)

    def _ask(self, source: Source, cache: Cache, tokens: np.ndarray, *, forbid_eos: bool) -> np.ndarray:
        assert source.rows == cache.rows == len(tokens)
        self.rows.append(len(tokens))
        self.forbid_eos.append(forbid_eos)
        return self._step(source, cache, tokens, forbid_eos=forbid_eos)


def test_rows_that_have_ended_leave_the_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = words(2, 12)
    lengths = [len(tokens) for tokens in pair.made(texts, max_new_tokens=LIMIT, **PLAIN)]
    open_ended = [sum(length > begun for length in lengths) for begun in (_CHUNK, 2 * _CHUNK)]
    watched = Watched(pair.generator.model, monkeypatch)
    pair.made(texts, max_new_tokens=LIMIT, **PLAIN)
    expected = [12] * _CHUNK + [open_ended[0]] * _CHUNK + [open_ended[1]] * (LIMIT - 2 * _CHUNK)
    assert watched.rows == expected
    assert 1 < open_ended[0] < 12


def test_the_least_length_is_counted_over_all_steps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(pair.generator.model, monkeypatch)
    pair.made(words(5), max_new_tokens=LIMIT, min_new_tokens=_CHUNK + 3, **PLAIN)
    assert watched.forbid_eos == [turn < _CHUNK + 3 for turn in range(len(watched.forbid_eos))]
    assert len(watched.forbid_eos) > _CHUNK + 3


def test_the_search_stops_once_every_row_has_ended(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = words(6, 20)
    answers = pair.made(texts, max_new_tokens=LIMIT, **PLAIN)
    short = [(text, len(tokens)) for text, tokens in zip(texts, answers, strict=True) if len(tokens) < _CHUNK]
    assert len(short) > 2
    watched = Watched(pair.generator.model, monkeypatch)
    pair.made([text for text, _ in short], max_new_tokens=LIMIT, **PLAIN)
    assert watched.rows == [len(short)] * max(length for _, length in short)


def test_pieces_hold_the_rows_tokens_up_to_the_end(pair: Pair) -> None:
    model, options = pair.generator.model, Options(max_new_tokens=LIMIT)
    ids, mask = pair.encode(words(2, 12))
    expected = pair.made(words(2, 12), max_new_tokens=LIMIT, **PLAIN)
    answers: list[list[int]] = [[] for _ in expected]
    for piece in run(
        model, model.encode(ids, mask), 1, greedy.search(list(ids), options, SpecialTokens(PAD, (END,), PAD))
    ):
        assert piece.scores is None
        assert END not in answers[piece.answer]
        answers[piece.answer] += piece.tokens.tolist()
    assert answers == expected
