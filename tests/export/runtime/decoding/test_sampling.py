"""With one token per call, edited logits, scores and the sampling distribution equal those of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lora_ft.export.runtime.cache import Cache, Source
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
def test_edited_logits_have_the_answers_of_transformers(pair: Pair, edit: str) -> None:
    texts = words(0)
    plain = pair.made(texts, max_new_tokens=LIMIT)
    options = {"max_new_tokens": LIMIT} | edits(plain)[edit]
    answers = pair.made(texts, **options)
    assert answers == pair.expected(texts, **options)
    assert answers != plain


@pytest.mark.parametrize("edit", [None, *EDITS[::4], EDITS[-1]])
def test_scores_equal_the_log_probabilities_of_transformers(pair: Pair, edit: str | None) -> None:
    texts = words(11)
    plain = pair.made(texts, max_new_tokens=LIMIT)
    options = {"max_new_tokens": LIMIT} | (edits(plain)[edit] if edit else {})
    expected = pair.generate(texts, **options)
    scores = pair.torch.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True).numpy()
    actual = pair.answer(texts, output_scores=True, **options)
    assert [answer.tokens.tolist() for answer in actual] == answers(expected.sequences)
    for answer, row in zip(actual, scores, strict=True):
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


def test_sources_leave_the_batch_once_all_answers_ended(unsure: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = unsure.generator.model, []
    likeliest = model.likeliest

    def watched(source: Source, cache: Cache, tokens: np.ndarray, *arguments: Any, **how: Any) -> Any:
        calls.append((source.rows, len(tokens), cache.rows))
        return likeliest(source, cache, tokens, *arguments, **how)

    monkeypatch.setattr(model, "likeliest", watched)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 20, "top_k": 5, "seed": 3}
    answers = unsure.made(words(5, 9), **options)
    lengths = [max(len(tokens) for tokens in answers[start : start + 3]) for start in range(0, len(answers), 3)]
    assert [rows for rows, _, _ in calls] == [sum(n > turn for n in lengths) for turn in range(max(lengths))]
    assert all(tokens == cached == 3 * rows for rows, tokens, cached in calls)
    assert len({rows for rows, _, _ in calls}) > 2


def test_remaining_rows_keep_their_source(unsure: Pair) -> None:
    """With top_k=1, sampling is greedy search, even after other rows have left."""
    texts = words(6, 9)
    sampled = unsure.made(texts, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=20)
    assert sampled == [tokens for tokens in unsure.made(texts, max_new_tokens=20) for _ in range(2)]
    assert len({len(tokens) for tokens in sampled}) > 2


def chi_square(drawn: Sequence[int], probabilities: np.ndarray) -> float:
    """Return Pearson's statistic in standard deviations above its mean, with rare cells merged.

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
    """Return transformers' distribution of the first token, or of the second token after `first`."""
    torch.manual_seed(0)
    output = pair.generate([text], do_sample=True, num_return_sequences=100, max_new_tokens=2, **options)
    if first is None:
        return output.scores[0][0].softmax(-1).numpy()
    behind = int(np.flatnonzero(output.sequences[:, 1].numpy() == first)[0])
    return output.scores[1][behind].softmax(-1).numpy()


@pytest.mark.parametrize("name", SAMPLING)
def test_samples_follow_the_distribution_of_transformers(unsure: Pair, name: str) -> None:
    [text], options = words(7, 3)[2:], SAMPLING[name]
    answers = unsure.made([text], do_sample=True, num_return_sequences=DRAWS, max_new_tokens=2, seed=3, **options)
    firsts = [tokens[0] for tokens in answers]
    assert chi_square(firsts, next_probabilities(unsure, text, None, options)) < 5
    common = Counter(token for token in firsts if token != END).most_common(1)[0][0]
    seconds = [tokens[1] for tokens in answers if tokens[0] == common]
    assert len(seconds) > 100
    assert chi_square(seconds, next_probabilities(unsure, text, common, options)) < 5


@pytest.mark.parametrize("name", ["cold", "hot", "top_k", "top_p", "all", "repetition_penalty", "suppress_tokens"])
def test_the_statistic_distinguishes_distributions(unsure: Pair, name: str) -> None:
    """This shows that the previous test can fail."""
    [text], options = words(7, 3)[2:], SAMPLING[name]
    plain = next_probabilities(unsure, text, None, {"top_k": 0})
    edited = next_probabilities(unsure, text, None, options)
    drawn = np.random.default_rng(0).choice(len(edited), DRAWS, p=edited.astype(np.float64) / edited.sum(dtype=float))
    assert chi_square(drawn.tolist(), edited) < 5
    assert chi_square(drawn.tolist(), plain) > 20


@pytest.mark.parametrize("name", ["as it is", "all", "repetition_penalty", "all and edits"])
def test_sample_scores_are_log_probabilities(unsure: Pair, name: str) -> None:
    [text], options = words(7, 3)[2:], SAMPLING[name]
    some = {"do_sample": True, "num_return_sequences": 300, "max_new_tokens": 2}
    answers = unsure.answer([text], output_scores=True, **some, **options)
    with np.errstate(divide="ignore"):
        first = np.log(next_probabilities(unsure, text, None, options))
        common = Counter(int(answer.tokens[0]) for answer in answers if answer.tokens[0] != END).most_common(1)[0][0]
        second = np.log(next_probabilities(unsure, text, common, options))
    for answer in answers:
        assert answer.scores is not None and answer.scores.shape == answer.tokens.shape
        assert answer.scores[0] == pytest.approx(first[answer.tokens[0]], abs=1e-4)
        if answer.tokens[0] == common:
            assert answer.scores[1] == pytest.approx(second[answer.tokens[1]], abs=1e-4)


@pytest.mark.parametrize("name", ["as it is", "all", "all and edits"])
def test_the_seed_determines_samples(unsure: Pair, name: str) -> None:
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": LIMIT} | SAMPLING[name]
    texts = words(8)
    first = unsure.made(texts, seed=1, **options)
    assert unsure.made(texts, seed=1, **options) == first
    assert unsure.made(texts, seed=2, **options) != first
    assert unsure.made(texts, **options) != unsure.made(texts, **options)  # without a seed each call draws another
    assert len({tuple(tokens) for tokens in first}) > len(first) // 2


def test_samples_do_not_depend_on_global_random_state(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": LIMIT, "seed": 5}
    draws = []
    for state in (1, 2):
        np.random.seed(state)
        torch.manual_seed(state)
        draws.append(unsure.made(words(9), **options))
    assert draws[0] == draws[1]


def test_sampled_answers_respect_their_limits(unsure: Pair) -> None:
    options = {"do_sample": True, "num_return_sequences": 20, "max_new_tokens": 9}
    free, limited = unsure.made(words(9), **options), unsure.made(words(9), min_new_tokens=5, **options)
    assert min(map(len, free)) < 5 < min(map(len, limited))
    for tokens in [*free, *limited]:
        assert END not in tokens[:-1]
        assert len(tokens) == 9 or tokens[-1] == END
