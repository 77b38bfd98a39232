"""Splits: disjoint, complete, of the requested sizes, and stratified by label."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.data.stratified import cut, oversampled

LABELS = st.lists(st.sampled_from("aabbbc"), min_size=10, max_size=120).filter(
    lambda labels: 1 not in Counter(labels).values()
)
SHARES = st.fixed_dictionaries({"validation": st.floats(0.06, 0.4), "test": st.floats(0.06, 0.4)})


@given(LABELS, SHARES, st.integers(0, 5), st.booleans())
def test_splits_are_disjoint_complete_and_of_the_requested_size(
    labels: list[str], shares: dict[str, float], seed: int, stratified: bool
) -> None:
    splits = cut(len(labels), shares, seed, labels if stratified else None)
    assert sorted(i for numbers in splits.values() for i in numbers) == list(range(len(labels)))
    if not stratified or len(labels) >= 5 * len(set(labels)):
        assert all(len(splits[name]) == round(share * len(labels)) for name, share in shares.items())
    assert splits == cut(len(labels), shares, seed, labels if stratified else None)


@given(LABELS, SHARES, st.integers(0, 5))
def test_every_label_has_its_share_of_each_split(labels: list[str], shares: dict[str, float], seed: int) -> None:
    splits = cut(len(labels), shares, seed, labels)
    counts = Counter(labels)
    assert {labels[i] for i in splits["train"]} == set(labels)
    if min(counts.values()) >= 10:
        for name, share in shares.items():
            part = Counter(labels[i] for i in splits[name])
            assert all(abs(part[label] - share * count) <= 1 for label, count in counts.items())


@pytest.mark.parametrize(("count", "empty"), [(1, "validation"), (4, "validation"), (7, "test")])
def test_a_split_without_rows_is_refused_by_its_name(count: int, empty: str) -> None:
    with pytest.raises(UsageError, match=f"leaves {empty} empty") as caught:
        cut(count, {"validation": 0.1, "test": 0.05}, 0)
    assert f"data.split.{empty}=0" in caught.value.remedy


@pytest.mark.parametrize("place", range(10))
def test_label_with_a_single_row_is_refused(place: int) -> None:
    labels = list("aabbaabba")
    labels.insert(place, "rare")
    with pytest.raises(UsageError, match="the label 'rare' has a single row"):
        cut(10, {"validation": 0.2}, 0, labels)


@given(st.lists(st.sampled_from("aaab"), min_size=1, max_size=50), st.integers(0, 3))
def test_oversampling_makes_labels_equally_frequent_and_keeps_every_row(labels: list[str], seed: int) -> None:
    numbers = oversampled(labels, seed)
    counts = Counter(labels[i] for i in numbers)
    assert set(counts.values()) == {max(Counter(labels).values())}
    assert set(numbers) == set(range(len(labels))) and numbers == oversampled(labels, seed)
    for label in counts:
        repeats = Counter(i for i in numbers if labels[i] == label).values()
        assert max(repeats) - min(repeats) <= 1
