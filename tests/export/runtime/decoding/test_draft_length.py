"""Drafts are as long as pays: by what was accepted and by what calls cost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.runtime.decoding.draft_length import LONGEST, DraftLengthController


def steady(first: float, slope: float, pace: DraftLengthController | None = None) -> DraftLengthController:
    """A pace that saw calls of every size, each token after the first at so much of the first."""
    pace = pace or DraftLengthController()
    for rows in (1, 8):
        for width in range(1, 2 + LONGEST):
            for _ in range(5):
                pace.took(rows, width, first * (1 + slope * (rows * width - 1)))
    return pace


def usual(pace: DraftLengthController, rows: int = 1, found: int = 2, length: int = LONGEST) -> int:
    """The width of most of some calls in which all rows draft as much: now and then a larger one is tried."""
    widths = [pace.width(rows, [(found, length)] * rows) for _ in range(15)]
    return max(set(widths), key=widths.count)


def test_drafts_are_longer_the_more_of_them_is_accepted() -> None:
    pace, widths = DraftLengthController(), []
    for _ in range(60):
        widths.append(usual(pace))
        pace.accepted(2, LONGEST, LONGEST)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == 1 + LONGEST


def test_a_rejected_draft_says_nothing_of_longer_or_shorter_matches() -> None:
    pace = DraftLengthController()
    before = usual(pace, found=1), usual(pace, found=3)
    for _ in range(60):
        pace.accepted(2, 0, 4)
    assert usual(pace, found=2) == 1
    assert (usual(pace, found=1), usual(pace, found=3)) == before
    assert min(before) > 1


def test_what_was_not_tried_counts_neither_way() -> None:
    one, other = DraftLengthController(), DraftLengthController()
    for _ in range(10):
        one.accepted(2, 1, 2)
        other.accepted(2, 1, 16)
        one.accepted(3, 0, 0)
    assert [usual(one, found=n) for n in (1, 2, 3)] == [usual(other, found=n) for n in (1, 2, 3)]


@pytest.mark.parametrize("rows", [1, 8])
def test_drafts_are_shorter_the_more_they_cost(rows: int) -> None:
    widths = [usual(steady(0.01, slope), rows) for slope in (0.001, 0.1 / rows, 0.3, 5.0)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[1] > widths[-1] == 1


@pytest.mark.parametrize("size", [0.001, 7.0])
def test_only_the_proportion_of_costs_matters(size: float) -> None:
    assert usual(steady(size, 0.1)) == usual(steady(0.02, 0.1))


def test_what_a_batch_costs_says_nothing_of_other_batches() -> None:
    pace = DraftLengthController()
    before = usual(pace, 2), usual(pace, 1)
    for _ in range(5):
        pace.took(2, 1, 0.01)
        pace.took(2, 2, 0.05)
    assert usual(pace, 2) == 1 < before[0]
    assert usual(pace, 1) == before[1]


def test_a_draft_must_pay_more_than_a_little() -> None:
    assert usual(steady(0.01, 0.69)) == 1  # 1.7 tokens for 1.69 of the time
    assert usual(steady(0.01, 0.45)) > 1


def test_a_few_slow_calls_do_not_count() -> None:
    """The first call loads the graph; others are cut in on by another process."""
    pace = DraftLengthController()
    pace.took(1, 5, 90.0)
    steady(0.01, 0.02, pace)
    pace.took(1, 5, 3.0)
    for _ in range(12):
        pace.took(1, 5, 0.01 * 1.08)
    assert usual(pace) == usual(steady(0.01, 0.02))


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    pace = DraftLengthController()
    for _ in range(5):
        pace.took(1, 1, 0.01)
    before = usual(pace)
    pace.took(1, before, 90.0)
    assert usual(pace) == before


def test_rows_that_copy_carry_others_that_do_not_only_where_calls_are_cheap() -> None:
    drafts = [*[(3, LONGEST)] * 4, *[(0, 0)] * 4]
    assert steady(0.01, 0.001).width(8, drafts) > 1
    assert steady(0.01, 0.2).width(8, drafts) == 1


def test_without_drafts_calls_have_single_tokens() -> None:
    assert DraftLengthController().width(3, [(0, 0)] * 3) == 1


def test_what_does_not_pay_is_tried_ever_more_seldom() -> None:
    pace, tried = steady(0.01, 5.0), []
    for turn in range(2000):
        if pace.width(1, [(2, LONGEST)]) > 1:
            tried.append(turn)
            pace.accepted(2, 0, 1)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1] <= 256
    assert len(tried) < 20


@given(
    drafts=st.lists(st.tuples(st.integers(1, 3), st.integers(0, LONGEST)), min_size=1, max_size=5),
    calls=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 17), st.floats(-1, 100)), max_size=60),
    outcomes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, LONGEST)), max_size=30),
)
def test_no_call_is_wider_than_the_longest_draft(
    drafts: list[tuple[int, int]], calls: list[tuple[int, int, float]], outcomes: list[tuple[int, int, int]]
) -> None:
    pace = DraftLengthController()
    for call in calls:
        pace.took(*call)
    for found, accepted, drafted in outcomes:
        pace.accepted(found, min(accepted, drafted), drafted)
    for _ in range(20):
        assert 1 <= pace.width(len(drafts), drafts) <= 1 + max(length for _, length in drafts)


def test_drafts_are_not_even_looked_for_where_they_are_refused_again_and_again() -> None:
    pace = steady(0.01, 5.0)
    rests = []
    for _ in range(200):
        rests.append(pace.rests(1))
        if not rests[-1]:
            pace.width(1, [(2, 4)])
    assert not any(rests[:8])
    assert sum(rests) > 100
    assert not all(rests[-40:])  # it looks again
    assert not pace.rests(8)  # of other batches nothing is known


def test_a_draft_that_is_taken_ends_the_rests() -> None:
    pace = steady(0.01, 0.01)
    for _ in range(50):
        assert not pace.rests(1)
        pace.width(1, [(2, LONGEST)])


def test_drafts_that_gave_less_than_plain_calls_are_left_out_for_ever_longer() -> None:
    """Whatever was reckoned: what counts is what came of it."""
    pace, rests = steady(0.01, 0.02), list[int]()
    for _ in range(4):
        for _ in range(100):
            pace.gave(1, 0.02, 1, 2)  # twice the time of a plain call for two tokens
            if pace.rests(1):
                break
        rests.append(1)
        while pace.rests(1):
            rests[-1] += 1
    assert rests[0] > 50
    assert all(more > 1.5 * less for less, more in pairwise(rests))


def test_drafts_that_gave_more_go_on() -> None:
    pace = steady(0.01, 0.02)
    for _ in range(200):
        pace.gave(1, 0.02, 1, 3)
        assert not pace.rests(1)
