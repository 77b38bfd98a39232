"""Accuracy and F1 of labels: examples computed by hand, and properties that hold for all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.evaluation.metrics.classification import LabelScore, by_label, measure
from lora_ft.evaluation.metrics.statistics import Scored, difference
from lora_ft.tasks.evaluate import Evaluate

LABELS = ["a", "b", "c", "d"]
Rows = list[tuple[str, str]]  # (label, answer)
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "nonsense"])), min_size=1, max_size=30)
SEEDS = {"seed": 0, "resamples": 200}


def scored(rows: Rows) -> dict[str, Scored]:
    return measure([answer for _, answer in rows], [[label] for label, _ in rows], Evaluate())


def values(rows: Rows) -> dict[str, float]:
    return {name: score.value for name, score in scored(rows).items()}


def test_scores_equal_those_computed_by_hand() -> None:
    rows = [("a", "a"), ("a", "b"), ("b", "b"), ("b", " b "), ("c", "nonsense")]
    scores = by_label([answer for _, answer in rows], [[label] for label, _ in rows], LABELS)
    assert scores["a"] == LabelScore(precision=100.0, recall=50.0, f1=66.67, rows=2, answers=1)
    assert scores["b"] == LabelScore(precision=66.67, recall=100.0, f1=80.0, rows=2, answers=3)
    assert scores["c"] == LabelScore(precision=0.0, recall=0.0, f1=0.0, rows=1, answers=0)
    assert scores["d"] == LabelScore(precision=0.0, recall=0.0, f1=0.0, rows=0, answers=0)
    assert values(rows)["accuracy"] == pytest.approx(60.0)
    assert values(rows)["macro_f1"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 0) / 3)  # no row has the label d


def test_the_answered_reference_is_the_label_of_the_row() -> None:
    scores = by_label(["b", "c"], [["a", "b"], ["a", "b"]], LABELS)
    assert [scores[label].rows for label in LABELS] == [1, 1, 0, 0] and scores["b"].recall == 100.0
    assert measure(["b", "c"], [["a", "b"], ["a", "b"]], Evaluate())["accuracy"].value == pytest.approx(50.0)


@given(rows=ROWS, data=st.data())
def test_the_order_of_rows_and_the_names_of_labels_do_not_matter(rows: Rows, data: st.DataObject) -> None:
    expected = pytest.approx(values(rows))
    assert values(data.draw(st.permutations(rows))) == expected
    names = dict(zip(LABELS, data.draw(st.permutations(LABELS)), strict=True))
    assert values([(names[label], names.get(answer, answer)) for label, answer in rows]) == expected


@given(rows=ROWS)
def test_macro_f1_is_the_mean_over_labels_that_occur(rows: Rows) -> None:
    f1 = []
    for label in {label for label, _ in rows}:
        hits = sum(a == b == label for a, b in rows)
        f1.append(2 * hits / (sum(a == label for a, _ in rows) + sum(b == label for _, b in rows)))
    assert values(rows)["macro_f1"] == pytest.approx(100 * float(np.mean(f1)))


@given(rows=ROWS)
def test_correct_answers_score_100_which_is_the_maximum(rows: Rows) -> None:
    assert set(values([(label, label) for label, _ in rows]).values()) == {100.0}
    for score in scored(rows).values():
        interval = score.estimate(**SEEDS)
        assert -1e-9 <= interval.low <= interval.high <= 100 + 1e-9


def test_the_interval_of_macro_f1_narrows_with_more_rows() -> None:
    rows = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("c", "c")]
    short, long = (scored(rows * times)["macro_f1"].estimate(**SEEDS) for times in (4, 100))
    assert short.low < long.low < long.mean < long.high < short.high


def test_differences_are_paired() -> None:
    better = scored([("a", "a"), ("b", "b"), ("c", "a"), ("c", "c")] * 20)["macro_f1"]
    worse = scored([("a", "a"), ("b", "a"), ("c", "a"), ("c", "c")] * 20)["macro_f1"]
    assert difference(better, better, **SEEDS).high == difference(better, better, **SEEDS).low == 0.0
    gain = difference(better, worse, **SEEDS)
    assert gain.mean == pytest.approx(better.value - worse.value) and 0 < gain.low < gain.mean < gain.high
