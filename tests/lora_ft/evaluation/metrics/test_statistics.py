"""Intervals and paired tests are correct for means and for corpus scores such as BLEU."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.evaluation.metrics import Scored, difference, estimate, measure
from lora_ft.evaluation.metrics.statistics import compare, holm
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


def test_an_interval_is_that_of_scipy() -> None:
    """Of 15 skewed scores, where the percentile interval is [13.5, 35.5]: scipy 1.16, 200,000 resamples, "BCa"."""
    rows = np.array([35, 0, 0, 47, 13, 55, 70, 22, 27, 42, 34, 0, 2, 15, 1], np.float64)
    interval = estimate(rows, seed=0, resamples=100_000)
    assert (interval.low, interval.high) == pytest.approx((14.133, 36.292), abs=0.15)


def test_the_interval_of_a_corpus_score_is_that_of_scipy() -> None:
    parts = np.array([[7, 5, 8, 3, 2, 7, 0, 1, 1, 3, 1, 7], [17, 9, 8, 11, 3, 14, 2, 12, 9, 14, 8, 15]], np.float64).T
    scored = Scored(100 * parts[:, 0] / parts[:, 1], parts, lambda sums: float(100 * sums[0] / sums[1]))
    interval = scored.estimate(seed=0, resamples=100_000)
    assert (interval.low, interval.high) == pytest.approx((25.203, 51.587), abs=0.3)


@pytest.mark.parametrize("rows", [[100.0] * 5, [0.0] * 5, [0.0, 100.0], [0.0] * 30 + [100.0]])
def test_an_interval_contains_the_score(rows: list[float]) -> None:
    interval = estimate(np.array(rows), seed=0, resamples=300)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 100


def test_intervals_of_few_skewed_rows_contain_the_true_score_more_often_than_percentiles_do() -> None:
    rng = np.random.default_rng(11)
    true, rows, samples = 100 / 6, 12, 400
    covered, percentiles = 0, 0
    for _ in range(samples):
        scores = 100 * rng.beta(0.2, 1.0, rows)
        interval = estimate(scores, seed=0, resamples=200)
        covered += interval.low <= true <= interval.high
        means = scores[np.random.default_rng(0).integers(rows, size=(200, rows))].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        percentiles += low <= true <= high
    assert covered > percentiles + 0.01 * samples


def test_a_corpus_score_is_resampled_through_its_sums() -> None:
    """The interval lies within sacrebleu's BLEU on the texts of the same resamples."""
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
    assert interval.low < interval.mean < interval.high
    for bound in (interval.low, interval.high):  # a quantile lies between two neighbours
        below, above = (np.sort(scores)[np.searchsorted(np.sort(scores), bound - 1e-6) + step] for step in (-1, 0))
        assert below - 1e-6 <= bound <= above + 1e-6


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


def test_holm_corrects_for_the_number_of_tests() -> None:
    """The example of R's `p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.7]) == [1.0, 1.0]


def test_rows_without_a_score_are_left_out_of_the_mean() -> None:
    rows = np.array([80.0, np.nan, 60.0, 90.0, np.nan, 70.0])
    scored = Scored.mean(rows)
    assert scored.value == pytest.approx(75)
    estimate = scored.estimate(seed=0, resamples=500)
    assert 60 <= estimate.low < 75 < estimate.high <= 90
    other = Scored.mean(np.where(np.isfinite(rows), rows - 5, 50.0))
    assert difference(scored, other, seed=0, resamples=500).mean == pytest.approx(75 - other.value)
    one = Scored.mean(np.array([40.0, np.nan, np.nan, np.nan])).estimate(seed=0, resamples=200)
    assert (one.mean, one.low, one.high) == (40, 40, 40)
