"""Accuracy and F1 of labels: by hand, and what must hold whatever the rows are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.evaluation.metrics.classification import LabelScore, by_label, measure
from lora_ft.evaluation.metrics.statistics import Scored, difference
from lora_ft.tasks.schema import Evaluate

LABELS = ["a", "b", "c", "d"]
Rows = list[tuple[str, str]]  # what is right, and what was said
ROWS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "nonsense"])), min_size=1, max_size=30)
SEEDS = {"seed": 0, "resamples": 200}


def scored(rows: Rows) -> dict[str, Scored]:
    return measure([said for _, said in rows], [[right] for right, _ in rows], Evaluate())


def values(rows: Rows) -> dict[str, float]:
    return {name: found.value for name, found in scored(rows).items()}


def test_scores_by_hand() -> None:
    rows = [("a", "a"), ("a", "b"), ("b", "b"), ("b", " b "), ("c", "nonsense")]
    found = by_label([said for _, said in rows], [[right] for right, _ in rows], LABELS)
    assert found["a"] == LabelScore(precision=100.0, recall=50.0, f1=66.67, rows=2, answers=1)
    assert found["b"] == LabelScore(precision=66.67, recall=100.0, f1=80.0, rows=2, answers=3)
    assert found["c"] == LabelScore(precision=0.0, recall=0.0, f1=0.0, rows=1, answers=0)
    assert found["d"] == LabelScore(precision=0.0, recall=0.0, f1=0.0, rows=0, answers=0)
    assert values(rows)["accuracy"] == pytest.approx(60.0)
    assert values(rows)["macro_f1"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 0) / 3)  # no row is of d


def test_of_several_references_the_answered_one_is_right() -> None:
    found = by_label(["b", "c"], [["a", "b"], ["a", "b"]], LABELS)
    assert [found[label].rows for label in LABELS] == [1, 1, 0, 0] and found["b"].recall == 100.0
    assert measure(["b", "c"], [["a", "b"], ["a", "b"]], Evaluate())["accuracy"].value == pytest.approx(50.0)


@given(rows=ROWS, data=st.data())
def test_the_order_of_rows_and_the_names_of_labels_do_not_matter(rows: Rows, data: st.DataObject) -> None:
    expected = pytest.approx(values(rows))
    assert values(data.draw(st.permutations(rows))) == expected
    names = dict(zip(LABELS, data.draw(st.permutations(LABELS)), strict=True))
    assert values([(names[right], names.get(said, said)) for right, said in rows]) == expected


@given(rows=ROWS)
def test_macro_f1_is_the_mean_over_the_labels_that_rows_have(rows: Rows) -> None:
    f1 = []
    for label in {right for right, _ in rows}:
        hits = sum(a == b == label for a, b in rows)
        f1.append(2 * hits / (sum(a == label for a, _ in rows) + sum(b == label for _, b in rows)))
    assert values(rows)["macro_f1"] == pytest.approx(100 * float(np.mean(f1)))


@given(rows=ROWS)
def test_all_right_is_100_and_nothing_exceeds_it(rows: Rows) -> None:
    assert set(values([(right, right) for right, _ in rows]).values()) == {100.0}
    for found in scored(rows).values():
        interval = found.estimate(**SEEDS)
        assert -1e-9 <= interval.low <= interval.high <= 100 + 1e-9


def test_the_interval_of_macro_f1_narrows_with_more_rows() -> None:
    some = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("c", "c")]
    few, many = (scored(some * times)["macro_f1"].estimate(**SEEDS) for times in (4, 100))
    assert few.low < many.low < many.mean < many.high < few.high


def test_differences_are_paired() -> None:
    one = scored([("a", "a"), ("b", "b"), ("c", "a"), ("c", "c")] * 20)["macro_f1"]
    other = scored([("a", "a"), ("b", "a"), ("c", "a"), ("c", "c")] * 20)["macro_f1"]
    assert difference(one, one, **SEEDS).high == difference(one, one, **SEEDS).low == 0.0
    gain = difference(one, other, **SEEDS)
    assert gain.mean == pytest.approx(one.value - other.value) and 0 < gain.low < gain.mean < gain.high
