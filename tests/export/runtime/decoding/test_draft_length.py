"""Draft lengths follow the acceptance of drafts and the cost of calls."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.runtime.decoding.draft_length import LONGEST, DraftLengthController


def steady(first: float, slope: float, pace: DraftLengthController | None = None) -> DraftLengthController:
    """Return a controller with timings of all widths, at `slope` of the first token per further token."""
    pace = pace or DraftLengthController()
    for rows in (1, 8):
        for width in range(1, 2 + LONGEST):
            for _ in range(5):
                pace.took(rows, width, first * (1 + slope * (rows * width - 1)))
    return pace


def usual(pace: DraftLengthController, rows: int = 1, matched: int = 2, length: int = LONGEST) -> int:
    """Return the most frequent width of several calls, since a larger width is tried from time to time."""
    widths = [pace.width(rows, [(matched, length)] * rows) for _ in range(15)]
    return max(set(widths), key=widths.count)


def test_drafts_grow_with_acceptance() -> None:
    pace, widths = DraftLengthController(), []
    for _ in range(60):
        widths.append(usual(pace))
        pace.accepted(2, LONGEST, LONGEST)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == 1 + LONGEST


def test_a_rejected_draft_affects_only_its_match_length() -> None:
    pace = DraftLengthController()
    before = usual(pace, matched=1), usual(pace, matched=3)
    for _ in range(60):
        pace.accepted(2, 0, 4)
    assert usual(pace, matched=2) == 1
    assert (usual(pace, matched=1), usual(pace, matched=3)) == before
    assert min(before) > 1


def test_untried_tokens_are_not_counted() -> None:
    short, long = DraftLengthController(), DraftLengthController()
    for _ in range(10):
        short.accepted(2, 1, 2)
        long.accepted(2, 1, 16)
        short.accepted(3, 0, 0)
    assert [usual(short, matched=n) for n in (1, 2, 3)] == [usual(long, matched=n) for n in (1, 2, 3)]


@pytest.mark.parametrize("rows", [1, 8])
def test_drafts_shrink_with_cost(rows: int) -> None:
    widths = [usual(steady(0.01, slope), rows) for slope in (0.001, 0.1 / rows, 0.3, 5.0)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[1] > widths[-1] == 1


@pytest.mark.parametrize("size", [0.001, 7.0])
def test_only_relative_costs_matter(size: float) -> None:
    assert usual(steady(size, 0.1)) == usual(steady(0.02, 0.1))


def test_costs_are_per_batch_size() -> None:
    pace = DraftLengthController()
    before = usual(pace, 2), usual(pace, 1)
    for _ in range(5):
        pace.took(2, 1, 0.01)
        pace.took(2, 2, 0.05)
    assert usual(pace, 2) == 1 < before[0]
    assert usual(pace, 1) == before[1]


def test_small_gains_do_not_justify_a_draft() -> None:
    assert usual(steady(0.01, 0.69)) == 1  # 1.7 tokens for 1.69 of the time
    assert usual(steady(0.01, 0.45)) > 1


def test_a_few_slow_calls_are_ignored() -> None:
    """The first call loads the graph, and another process may slow down others."""
    pace = DraftLengthController()
    pace.took(1, 5, 90.0)
    steady(0.01, 0.02, pace)
    pace.took(1, 5, 3.0)
    for _ in range(12):
        pace.took(1, 5, 0.01 * 1.08)
    assert usual(pace) == usual(steady(0.01, 0.02))


def test_a_slow_width_is_tried_again() -> None:
    pace = DraftLengthController()
    for _ in range(5):
        pace.took(1, 1, 0.01)
    before = usual(pace)
    pace.took(1, before, 90.0)
    assert usual(pace) == before


def test_rows_with_drafts_justify_wide_calls_only_if_cheap() -> None:
    drafts = [*[(3, LONGEST)] * 4, *[(0, 0)] * 4]
    assert steady(0.01, 0.001).width(8, drafts) > 1
    assert steady(0.01, 0.2).width(8, drafts) == 1


def test_calls_without_drafts_have_single_tokens() -> None:
    assert DraftLengthController().width(3, [(0, 0)] * 3) == 1


def test_unprofitable_widths_are_tried_less_and_less() -> None:
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
    for matched, accepted, drafted in outcomes:
        pace.accepted(matched, min(accepted, drafted), drafted)
    for _ in range(20):
        assert 1 <= pace.width(len(drafts), drafts) <= 1 + max(length for _, length in drafts)


def test_repeated_refusals_pause_the_search_for_drafts() -> None:
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


def test_an_accepted_draft_ends_the_pauses() -> None:
    pace = steady(0.01, 0.01)
    for _ in range(50):
        assert not pace.rests(1)
        pace.width(1, [(2, LONGEST)])


def test_unprofitable_drafts_are_switched_off_longer_and_longer() -> None:
    """The measured gain decides, regardless of estimates."""
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


def test_profitable_drafts_continue() -> None:
    pace = steady(0.01, 0.02)
    for _ in range(200):
        pace.gave(1, 0.02, 1, 3)
        assert not pace.rests(1)
