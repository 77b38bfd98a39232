"""Intervals and paired tests are correct for means and for corpus scores such as BLEU."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.evaluation.metrics import Scored, difference, estimate, measure
from lora_ft.evaluation.metrics.statistics import compare
from lora_ft.tasks.evaluate import Evaluate

SCORES = np.random.default_rng(0).uniform(10, 60, 200)


def test_an_estimate_is_the_mean_with_its_interval() -> None:
    interval = estimate(SCORES, seed=0, resamples=1000)
    assert interval.mean == pytest.approx(SCORES.mean())
    assert interval.low < interval.mean < interval.high
    # The bootstrap should agree with the normal approximation for the mean of 200 rows.
    half = 1.96 * SCORES.std() / 200**0.5
    assert interval.high - interval.mean == pytest.approx(half, rel=0.15)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.15)


def test_an_estimate_is_reproducible_by_its_seed() -> None:
    assert estimate(SCORES, seed=1, resamples=200) == estimate(SCORES, seed=1, resamples=200)
    assert estimate(SCORES, seed=1, resamples=200) != estimate(SCORES, seed=2, resamples=200)


def test_more_rows_narrow_the_interval() -> None:
    short, long = (estimate(rows, seed=0, resamples=500) for rows in (SCORES[:20], np.tile(SCORES[:20], 16)))
    assert short.mean == pytest.approx(long.mean)
    assert (long.high - long.low) < 0.4 * (short.high - short.low)


def test_equal_answers_differ_by_exactly_zero() -> None:
    same = difference(Scored.mean(SCORES), Scored.mean(SCORES.copy()), seed=0, resamples=500)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_the_interval_of_a_difference_is_paired() -> None:
    paired = difference(Scored.mean(SCORES + 1), Scored.mean(SCORES), seed=0, resamples=500)
    assert (paired.low, paired.mean, paired.high) == pytest.approx((1, 1, 1))


def test_one_row_has_an_interval_of_zero_width() -> None:
    assert str(estimate(np.array([40.04]), seed=0, resamples=100)) == "40.0 [40.0, 40.0]"


def test_a_corpus_score_is_resampled_through_its_sums() -> None:
    """The interval equals the percentiles of sacrebleu's BLEU on the texts of each resample."""
    import sacrebleu

    answers, references = make_texts(12)
    scored = measure(["bleu"], answers, references, Evaluate())["bleu"]
    rng = np.random.default_rng(3)
    resamples = [rng.integers(12, size=12) for _ in range(100)]
    scores = [
        sacrebleu.corpus_bleu([answers[i] for i in rows], [[references[i][0] for i in rows]]).score
        for rows in resamples
    ]
    interval = scored.estimate(seed=3, resamples=100)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))
    assert interval.low < interval.mean < interval.high


def make_texts(rows: int) -> tuple[list[str], list[list[str]]]:
    """Return answers, every third of which equals its reference, and the references."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "dog", "sat", "on", "under", "a", "big", "small", "mat", "and", "then", "slept"])
    references = [" ".join(rng.choice(words, 9)) for _ in range(rows)]
    answers = [text if i % 3 == 0 else " ".join(rng.permutation(text.split())) for i, text in enumerate(references)]
    return answers, [[text] for text in references]


def test_the_paired_test_of_a_mean_is_the_sign_flip_test() -> None:
    """The p-value of random swaps approximates the exact one over all 2**8 swaps."""
    rng = np.random.default_rng(1)
    model, baseline = rng.uniform(0, 100, 8), rng.uniform(0, 100, 8)
    change = model - baseline
    signs = np.array([[1 if pattern >> bit & 1 else -1 for bit in range(8)] for pattern in range(256)])
    exact = np.mean(np.abs(signs @ change) >= abs(change.sum()) - 1e-9)
    result = compare(Scored.mean(model), Scored.mean(baseline), seed=0, resamples=5000)
    assert result.p == pytest.approx(exact, abs=0.03)
    assert result.estimate == difference(Scored.mean(model), Scored.mean(baseline), seed=0, resamples=5000)


def test_the_paired_test_is_two_sided() -> None:
    a, b = Scored.mean(SCORES), Scored.mean(SCORES[::-1].copy())
    forward, backward = (compare(*pair, seed=5, resamples=400) for pair in ((a, b), (b, a)))
    assert forward.p == backward.p
    assert forward.estimate.mean == pytest.approx(-backward.estimate.mean)


def test_equal_answers_never_differ_significantly() -> None:
    answers, references = make_texts(9)
    for name, scored in measure(["rouge", "bleu", "chrf"], answers, references, Evaluate()).items():
        result = compare(scored, scored, seed=0, resamples=200)
        change = result.estimate
        assert (result.p, change.mean, change.low, change.high) == (1, 0, 0, 0), name


def test_a_large_difference_has_the_smallest_possible_p() -> None:
    answers, references = make_texts(60)
    better, worse = (
        measure(["bleu"], outputs, references, Evaluate())["bleu"]
        for outputs in ([texts[0] for texts in references], answers)
    )
    assert compare(better, worse, seed=0, resamples=999).p == pytest.approx(1 / 1000)
