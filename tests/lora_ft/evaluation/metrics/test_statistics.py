"""Intervals and paired tests: honest about means, and the same for scores that are no means."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.evaluation.metrics import Scored, difference, estimate, measure
from lora_ft.evaluation.metrics.statistics import compare
from lora_ft.tasks.schema import Evaluate

SCORES = np.random.default_rng(0).uniform(10, 60, 200)


def test_an_estimate_is_the_plain_mean_within_its_interval() -> None:
    found = estimate(SCORES, seed=0, resamples=1000)
    assert found.mean == pytest.approx(SCORES.mean())
    assert found.low < found.mean < found.high
    # Normal theory for the mean of 200 rows; the bootstrap must come near to it.
    half = 1.96 * SCORES.std() / 200**0.5
    assert found.high - found.mean == pytest.approx(half, rel=0.15)
    assert found.mean - found.low == pytest.approx(half, rel=0.15)


def test_an_estimate_is_the_same_for_a_seed() -> None:
    assert estimate(SCORES, seed=1, resamples=200) == estimate(SCORES, seed=1, resamples=200)
    assert estimate(SCORES, seed=1, resamples=200) != estimate(SCORES, seed=2, resamples=200)


def test_more_rows_give_a_narrower_interval() -> None:
    few, many = (estimate(rows, seed=0, resamples=500) for rows in (SCORES[:20], np.tile(SCORES[:20], 16)))
    assert few.mean == pytest.approx(many.mean)
    assert (many.high - many.low) < 0.4 * (few.high - few.low)


def test_models_that_answer_alike_differ_by_exactly_nothing() -> None:
    same = difference(Scored.mean(SCORES), Scored.mean(SCORES.copy()), seed=0, resamples=500)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_the_interval_of_a_difference_is_paired() -> None:
    paired = difference(Scored.mean(SCORES + 1), Scored.mean(SCORES), seed=0, resamples=500)
    assert (paired.low, paired.mean, paired.high) == pytest.approx((1, 1, 1))


def test_one_row_has_an_interval_of_no_width() -> None:
    assert str(estimate(np.array([40.04]), seed=0, resamples=100)) == "40.0 [40.0, 40.0]"


def test_a_score_that_is_no_mean_is_drawn_through_its_sums() -> None:
    """BLEU of drawn rows, computed anew by sacrebleu from their texts, is what the interval is made of."""
    import sacrebleu

    answers, references = texts(12)
    scored = measure(["bleu"], answers, references, Evaluate())["bleu"]
    rng = np.random.default_rng(3)
    drawn = [rng.integers(12, size=12) for _ in range(100)]
    scores = [
        sacrebleu.corpus_bleu([answers[i] for i in rows], [[references[i][0] for i in rows]]).score for rows in drawn
    ]
    found = scored.estimate(seed=3, resamples=100)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))
    assert found.low < found.mean < found.high


def texts(rows: int) -> tuple[list[str], list[list[str]]]:
    """Answers of which every third is its reference, and references."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "dog", "sat", "on", "under", "a", "big", "small", "mat", "and", "then", "slept"])
    references = [" ".join(rng.choice(words, 9)) for _ in range(rows)]
    answers = [text if i % 3 == 0 else " ".join(rng.permutation(text.split())) for i, text in enumerate(references)]
    return answers, [[text] for text in references]


def test_the_test_of_a_mean_is_the_sign_flip_test() -> None:
    """All 2**8 swaps can be counted; the drawn ones must come near to their share."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.uniform(0, 100, 8), rng.uniform(0, 100, 8)
    change = ours - theirs
    signs = np.array([[1 if pattern >> bit & 1 else -1 for bit in range(8)] for pattern in range(256)])
    exact = np.mean(np.abs(signs @ change) >= abs(change.sum()) - 1e-9)
    found = compare(Scored.mean(ours), Scored.mean(theirs), seed=0, resamples=5000)
    assert found.p == pytest.approx(exact, abs=0.03)
    assert found.estimate == difference(Scored.mean(ours), Scored.mean(theirs), seed=0, resamples=5000)


def test_the_test_has_no_side() -> None:
    ours, theirs = Scored.mean(SCORES), Scored.mean(SCORES[::-1].copy())
    one, other = (compare(*pair, seed=5, resamples=400) for pair in ((ours, theirs), (theirs, ours)))
    assert one.p == other.p
    assert one.estimate.mean == pytest.approx(-other.estimate.mean)


def test_models_that_answer_alike_are_never_found_to_differ() -> None:
    answers, references = texts(9)
    for name, scored in measure(["rouge", "bleu", "chrf"], answers, references, Evaluate()).items():
        found = compare(scored, scored, seed=0, resamples=200)
        assert (found.p, found.estimate.mean, found.estimate.low, found.estimate.high) == (1, 0, 0, 0), name


def test_a_large_difference_of_many_rows_is_found_and_p_is_never_nothing() -> None:
    answers, references = texts(60)
    better, worse = (
        measure(["bleu"], given, references, Evaluate())["bleu"] for given in ([one[0] for one in references], answers)
    )
    assert compare(better, worse, seed=0, resamples=999).p == pytest.approx(1 / 1000)
