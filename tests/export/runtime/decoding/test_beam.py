"""Beam search returns the answers and scores of transformers, for each source separately."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.decoding.beam import _top
from lora_ft.export.runtime.generated import Generated
from tests.export.oracle import END
from tests.export.runtime.cases import EDITS, Pair, answers, edits, words
from tests.tiny import CONFIG

LIMIT = 9
PENALTIES = (0.0, 1.0, 2.0, -1.0)
VOCABULARY: int = CONFIG["vocab_size"]


def assert_close(actual: Sequence[Generated], expected: Any) -> None:
    """Check that answers and scores equal those of transformers."""
    assert [answer.tokens.tolist() for answer in actual] == answers(expected.sequences)
    scores = np.array([answer.scores for answer in actual])
    assert scores.shape == (len(actual), 1)
    np.testing.assert_allclose(scores[:, 0], expected.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_answers_and_scores_equal_those_of_transformers(pair: Pair, beams: int, early_stopping: bool | str) -> None:
    for penalty in PENALTIES[beams % 2 :: 2]:
        options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": LIMIT}
        options |= {"length_penalty": penalty, "early_stopping": early_stopping}
        texts = words(beams)
        assert_close(pair.answer(texts, output_scores=True, **options), pair.generate(texts, **options))


@pytest.mark.parametrize("edit", EDITS)
def test_edited_logits_have_the_answers_of_transformers(pair: Pair, edit: str) -> None:
    texts, beams = words(0), {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": LIMIT}
    options = beams | edits(pair.made(texts, max_new_tokens=LIMIT))[edit]
    answers = pair.answer(texts, output_scores=True, **options)
    assert_close(answers, pair.generate(texts, **options))
    assert [answer.tokens.tolist() for answer in answers] != pair.made(texts, **beams)


@pytest.mark.parametrize("limit", [1, 2, 30])
def test_the_limit_is_that_of_transformers(pair: Pair, limit: int) -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": limit}
    answers = pair.answer(words(4), output_scores=True, **options)
    assert_close(answers, pair.generate(words(4), **options))
    assert max(len(answer.tokens) for answer in answers) == limit


def test_more_beams_than_tokens_equal_transformers(unsure: Pair) -> None:
    options: dict[str, Any] = {"num_beams": VOCABULARY - 10, "num_return_sequences": 20, "max_new_tokens": 4}
    answers = unsure.answer(words(1, 3), output_scores=True, **options)
    assert_close(answers, unsure.generate(words(1, 3), **options))


@pytest.mark.parametrize(
    "changes", [{"length_penalty": 0.0}, {"length_penalty": -1.0}, {"early_stopping": True}, {"num_beams": 2}], ids=str
)
def test_each_option_of_beams_changes_some_answers(pair: Pair, changes: dict[str, Any]) -> None:
    options = {"num_beams": 4, "max_new_tokens": LIMIT, "length_penalty": 1.0, "early_stopping": False}
    assert pair.made(words(2, 20), **options) != pair.made(words(2, 20), **options | changes)


def test_exhaustive_beams_find_the_best_answers(unsure: Pair) -> None:
    """With as many beams as tokens, all answers of two tokens are kept."""
    generator = unsure.generator
    ids, mask = unsure.encode(["ab"])
    first = log_probs(generator.score(ids, mask, np.array([[0]]))[0, 0])
    pairs = np.array([[token, 0] for token in range(VOCABULARY)])
    repeated = np.repeat(ids, VOCABULARY, axis=0), np.repeat(mask, VOCABULARY, axis=0)
    second = log_probs(generator.score(*repeated, pairs)[:, 1])
    total = {(END,): first[END]}
    for first_token, two in itertools.product(range(VOCABULARY), repeat=2):
        if first_token != END:
            total[first_token, two] = (first[first_token] + second[first_token, two]) / 2
    best = sorted(total, key=total.__getitem__, reverse=True)[:9]
    answers = unsure.answer(
        ["ab"],
        num_beams=VOCABULARY,
        num_return_sequences=9,
        max_new_tokens=2,
        early_stopping="never",
        output_scores=True,
    )
    assert [tuple(answer.tokens.tolist()) for answer in answers] == best
    np.testing.assert_allclose([answer.scores[0] for answer in answers], [total[answer] for answer in best], rtol=1e-4)


def log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_fewer_answers_are_a_prefix_of_more(pair: Pair) -> None:
    texts, options = words(3), {"num_beams": 4, "max_new_tokens": LIMIT}
    all_four = pair.made(texts, num_return_sequences=4, **options)
    for count in (1, 2, 3):
        some = pair.made(texts, num_return_sequences=count, **options)
        assert some == [answer for i, answer in enumerate(all_four) if i % 4 < count]


def test_answers_to_a_source_differ_and_their_scores_fall(pair: Pair) -> None:
    answers = pair.answer(words(5), num_beams=5, num_return_sequences=5, max_new_tokens=LIMIT, output_scores=True)
    for start in range(0, len(answers), 5):
        some = answers[start : start + 5]
        assert len({tuple(answer.tokens) for answer in some}) == 5
        scores = [float(answer.scores[0]) for answer in some]
        assert scores == sorted(scores, reverse=True)
        for answer in some:
            assert END not in answer.tokens[:-1]
            assert answer.tokens[-1] == END or len(answer.tokens) == LIMIT


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2}, {"early_stopping": True}], ids=str)
def test_answers_do_not_depend_on_the_batch(pair: Pair, options: dict[str, Any]) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": LIMIT, "output_scores": True} | options
    texts = words(6, 10)
    together = pair.answer(texts, **options)
    alone = [answer for text in texts for answer in pair.answer([text], **options)]
    assert [a.tokens.tolist() for a in together] == [a.tokens.tolist() for a in alone]
    np.testing.assert_allclose([a.scores for a in together], [a.scores for a in alone], rtol=1e-4, atol=1e-5)


def test_neutral_edits_change_no_answer(pair: Pair) -> None:
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": LIMIT, "output_scores": True}
    plain, edited = pair.answer(words(7), **options), pair.answer(words(7), no_repeat_ngram_size=LIMIT + 2, **options)
    assert [a.tokens.tolist() for a in plain] == [a.tokens.tolist() for a in edited]
    np.testing.assert_allclose([a.scores for a in plain], [a.scores for a in edited], rtol=1e-5, atol=1e-5)


def test_finished_sources_leave_the_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch_sizes = pair.generator.model, []
    likeliest = model.likeliest

    def watched(source: Source, cache: Cache, tokens: np.ndarray, *arguments: Any, **how: Any) -> Any:
        batch_sizes.append((source.rows, len(tokens), cache.rows))
        return likeliest(source, cache, tokens, *arguments, **how)

    texts, options = words(8, 12), {"num_beams": 3, "max_new_tokens": 2 * LIMIT}
    alone = [calls_of_one(pair, text, **options) for text in texts]
    monkeypatch.setattr(model, "likeliest", watched)
    pair.made(texts, **options)
    assert [rows for rows, _, _ in batch_sizes] == [sum(calls > turn for calls in alone) for turn in range(max(alone))]
    assert all(tokens == cached == 3 * rows for rows, tokens, cached in batch_sizes)
    assert len({rows for rows, _, _ in batch_sizes}) > 2


def calls_of_one(pair: Pair, text: str, **options: Any) -> int:
    """Return the number of beam search steps for a single text."""
    calls: list[int] = []
    likeliest = pair.generator.model.likeliest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pair.generator.model, "likeliest", lambda *args, **how: calls.append(1) or likeliest(*args, **how)
        )
        pair.made([text], **options)
    return len(calls)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 1.0])
def test_the_number_of_steps_is_that_of_transformers(unsure: Pair, early_stopping: bool | str, penalty: float) -> None:
    options = {"num_beams": 3, "max_new_tokens": 20, "early_stopping": early_stopping, "length_penalty": penalty}
    steps = [calls_of_one(unsure, text, **options) for text in words(9, 6)]
    assert steps == [len(unsure.generate([text], **options).scores) for text in words(9, 6)]
    assert min(steps) < 20


@given(
    values=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-3, 3)),
    count=st.integers(1, 12),
)
def test_the_largest_values_are_in_descending_order(values: np.ndarray, count: int) -> None:
    places = _top(values, count)
    assert all(len(set(row)) == len(row) for row in places.tolist())
    assert np.array_equal(np.take_along_axis(values, places, axis=1), -np.sort(-values, axis=1)[:, :count])
