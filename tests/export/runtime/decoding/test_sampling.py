"""A token a call: edited logits and scores are transformers', samples are drawn from its distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lora_ft.export.runtime.model import Cache, Source
from tests.export.oracle import END
from tests.export.runtime.cases import EDITS, Pair, answers, edits, words

LIMIT = 12
DRAWS = 4000
SAMPLING: dict[str, dict[str, Any]] = {
    "as it is": {"top_k": 0},
    "cold": {"top_k": 0, "temperature": 0.6},
    "hot": {"top_k": 0, "temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k beyond the vocabulary": {"top_k": 1000},
    "top_k of one": {"top_k": 1},
    "top_p": {"top_k": 0, "top_p": 0.6},
    "top_p of almost nothing": {"top_k": 0, "top_p": 1e-6},
    "all": {"top_k": 12, "top_p": 0.8, "temperature": 1.7},
    "repetition_penalty": {"top_k": 0, "temperature": 1.5, "repetition_penalty": 3.0},
    "suppress_tokens": {"top_k": 6, "suppress_tokens": [*range(20, 40)]},
    "no end": {"top_k": 0, "min_new_tokens": 2},
    "all and edits": {"top_k": 9, "top_p": 0.9, "temperature": 1.3, "begin_suppress_tokens": [*range(30, 80)]},
}


@pytest.mark.parametrize("edit", EDITS)
def test_answers_with_edited_logits_are_those_of_transformers(pair: Pair, edit: str) -> None:
    texts = words(0)
    plain = pair.made(texts, max_new_tokens=LIMIT)
    options = {"max_new_tokens": LIMIT} | edits(plain)[edit]
    made = pair.made(texts, **options)
    assert made == pair.expected(texts, **options)
    assert made != plain


@pytest.mark.parametrize("edit", [None, *EDITS[::4], EDITS[-1]])
def test_scores_are_transformers_log_probabilities(pair: Pair, edit: str | None) -> None:
    texts = words(11)
    plain = pair.made(texts, max_new_tokens=LIMIT)
    options = {"max_new_tokens": LIMIT} | (edits(plain)[edit] if edit else {})
    expected = pair.generate(texts, **options)
    scores = pair.torch.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True).numpy()
    made = pair.answer(texts, output_scores=True, **options)
    assert [answer.tokens.tolist() for answer in made] == answers(expected.sequences)
    for answer, row in zip(made, scores, strict=True):
        assert answer.scores is not None and answer.scores.shape == answer.tokens.shape
        np.testing.assert_allclose(answer.scores, row[: len(answer.tokens)], rtol=1e-4, atol=1e-4)


def test_scores_change_no_answer(pair: Pair) -> None:
    plain = pair.made(words(1), max_new_tokens=LIMIT)
    assert pair.made(words(1), max_new_tokens=LIMIT, output_scores=True) == plain
    least = pair.made(words(1), max_new_tokens=LIMIT, min_new_tokens=6)
    assert pair.made(words(1), max_new_tokens=LIMIT, min_new_tokens=6, output_scores=True) == least != plain


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.4}, {"output_scores": True}], ids=str)
def test_answers_do_not_depend_on_the_batch(pair: Pair, options: dict[str, Any]) -> None:
    texts = words(3, 12)
    together = pair.answer(texts, max_new_tokens=LIMIT, **options)
    alone = [pair.answer([text], max_new_tokens=LIMIT, **options)[0] for text in texts]
    assert [a.tokens.tolist() for a in together] == [a.tokens.tolist() for a in alone]
    assert len({len(a.tokens) for a in together}) > 2
    for a, b in zip(together, alone, strict=True):
        assert (a.scores is None) == (b.scores is None) == ("output_scores" not in options)
        if a.scores is not None and b.scores is not None:
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-4)


def test_sources_leave_the_batch_when_all_their_answers_have_ended(
    unsure: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = unsure.generator.model, []
    likeliest = model.likeliest

    def watched(source: Source, cache: Cache, tokens: np.ndarray, *rest: Any, **how: Any) -> Any:
        asked.append((source.rows, len(tokens), cache.rows))
        return likeliest(source, cache, tokens, *rest, **how)

    monkeypatch.setattr(model, "likeliest", watched)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 20, "top_k": 5, "seed": 3}
    made = unsure.made(words(5, 9), **options)
    lengths = [max(len(tokens) for tokens in made[start : start + 3]) for start in range(0, len(made), 3)]
    assert [rows for rows, _, _ in asked] == [sum(n > turn for n in lengths) for turn in range(max(lengths))]
    assert all(tokens == cached == 3 * rows for rows, tokens, cached in asked)
    assert len({rows for rows, _, _ in asked}) > 2


def test_samples_of_rows_that_stay_are_of_their_own_source(unsure: Pair) -> None:
    """Sampling from the likeliest token alone is greedy search, whoever has left."""
    texts = words(6, 9)
    sampled = unsure.made(texts, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=20)
    assert sampled == [tokens for tokens in unsure.made(texts, max_new_tokens=20) for _ in range(2)]
    assert len({len(tokens) for tokens in sampled}) > 2


def chi_square(drawn: Sequence[int], probabilities: np.ndarray) -> float:
    """How many standard deviations Pearson's statistic lies above its mean, cells of few expected draws put together.

    Infinite where something was drawn that is impossible.
    """
    counts = np.bincount(drawn, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return np.inf
    expected = probabilities.astype(np.float64) * len(drawn)
    rare = expected < 8
    counts, expected = (np.append(cells[~rare], cells[rare].sum()) for cells in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = max(len(expected) - 1, 1)
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def next_probabilities(pair: Pair, text: str, first: int | None, options: dict[str, Any]) -> np.ndarray:
    """What transformers draws the first token from, or the second behind `first`."""
    torch.manual_seed(0)
    made = pair.generate([text], do_sample=True, num_return_sequences=100, max_new_tokens=2, **options)
    if first is None:
        return made.scores[0][0].softmax(-1).numpy()
    behind = int(np.flatnonzero(made.sequences[:, 1].numpy() == first)[0])
    return made.scores[1][behind].softmax(-1).numpy()


@pytest.mark.parametrize("name", SAMPLING)
def test_samples_are_drawn_from_transformers_distribution(unsure: Pair, name: str) -> None:
    [text], options = words(7, 3)[2:], SAMPLING[name]
    made = unsure.made([text], do_sample=True, num_return_sequences=DRAWS, max_new_tokens=2, seed=3, **options)
    firsts = [tokens[0] for tokens in made]
    assert chi_square(firsts, next_probabilities(unsure, text, None, options)) < 5
    common = Counter(token for token in firsts if token != END).most_common(1)[0][0]
    seconds = [tokens[1] for tokens in made if tokens[0] == common]
    assert len(seconds) > 100
    assert chi_square(seconds, next_probabilities(unsure, text, common, options)) < 5


@pytest.mark.parametrize("name", ["cold", "hot", "top_k", "top_p", "all", "repetition_penalty", "suppress_tokens"])
def test_such_samples_are_seen_to_be_of_another_distribution_than_the_plain_one(unsure: Pair, name: str) -> None:
    """So that the test above can fail."""
    [text], options = words(7, 3)[2:], SAMPLING[name]
    plain = next_probabilities(unsure, text, None, {"top_k": 0})
    edited = next_probabilities(unsure, text, None, options)
    drawn = np.random.default_rng(0).choice(len(edited), DRAWS, p=edited.astype(np.float64) / edited.sum(dtype=float))
    assert chi_square(drawn.tolist(), edited) < 5
    assert chi_square(drawn.tolist(), plain) > 20


@pytest.mark.parametrize("name", ["as it is", "all", "repetition_penalty", "all and edits"])
def test_scores_of_samples_are_their_log_probabilities(unsure: Pair, name: str) -> None:
    [text], options = words(7, 3)[2:], SAMPLING[name]
    some = {"do_sample": True, "num_return_sequences": 300, "max_new_tokens": 2}
    made = unsure.answer([text], output_scores=True, **some, **options)
    with np.errstate(divide="ignore"):
        first = np.log(next_probabilities(unsure, text, None, options))
        common = Counter(int(answer.tokens[0]) for answer in made if answer.tokens[0] != END).most_common(1)[0][0]
        second = np.log(next_probabilities(unsure, text, common, options))
    for answer in made:
        assert answer.scores is not None and answer.scores.shape == answer.tokens.shape
        assert answer.scores[0] == pytest.approx(first[answer.tokens[0]], abs=1e-4)
        if answer.tokens[0] == common:
            assert answer.scores[1] == pytest.approx(second[answer.tokens[1]], abs=1e-4)


@pytest.mark.parametrize("name", ["as it is", "all", "all and edits"])
def test_the_same_seed_draws_the_same_and_another_another(unsure: Pair, name: str) -> None:
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": LIMIT} | SAMPLING[name]
    texts = words(8)
    one = unsure.made(texts, seed=1, **options)
    assert unsure.made(texts, seed=1, **options) == one
    assert unsure.made(texts, seed=2, **options) != one
    assert unsure.made(texts, **options) != unsure.made(texts, **options)  # without a seed each call draws another
    assert len({tuple(tokens) for tokens in one}) > len(one) // 2


def test_samples_are_no_answers_of_transformers_random_state(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": LIMIT, "seed": 5}
    made = []
    for state in (1, 2):
        np.random.seed(state)
        torch.manual_seed(state)
        made.append(unsure.made(words(9), **options))
    assert made[0] == made[1]


def test_sampled_answers_keep_their_limits(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 20, "max_new_tokens": 9}
    free, held = unsure.made(words(9), **options), unsure.made(words(9), min_new_tokens=5, **options)
    assert min(map(len, free)) < 5 < min(map(len, held))
    for tokens in [*free, *held]:
        assert END not in tokens[:-1]
        assert len(tokens) == 9 or tokens[-1] == END
