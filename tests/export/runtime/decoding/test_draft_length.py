"""Draft lengths follow the acceptance of drafts and the cost of calls."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.runtime.decoding.draft_length import LONGEST, MATCHED, DraftLengthController, Evidence


def steady(first: float, slope: float, pace: DraftLengthController | None = None) -> DraftLengthController:
    """Return a controller with timings of all widths, at `slope` of the first token per further token."""
    pace = pace or DraftLengthController()
    for rows in (1, 8):
        for width in range(1 + LONGEST, 0, -1):  # the plain call last, so that its cost is fresh
            for _ in range(5):
                pace.took(rows, width, first * (1 + slope * (rows * width - 1)))
    return pace


def shares(pace: DraftLengthController, matched: int = 2, length: int = LONGEST) -> list[float]:
    """Return the shares of the tokens of a copy that begins behind `matched` equal tokens."""
    return [pace.share(each) for each in copied(matched, length)]


def copied(matched: int, length: int) -> list[Evidence]:
    return [("copy", min(matched + i, MATCHED)) for i in range(length)]


def usual(pace: DraftLengthController, rows: int = 1, matched: int = 2, length: int = LONGEST) -> int:
    """Return the most frequent width of several calls, since a larger width is tried from time to time."""
    widths = [pace.width(rows, [shares(pace, matched, length)] * rows) for _ in range(15)]
    return max(set(widths), key=widths.count)


def test_drafts_grow_with_acceptance() -> None:
    pace, widths = DraftLengthController(), []
    for _ in range(60):
        widths.append(usual(pace))
        pace.accepted(copied(2, LONGEST), LONGEST)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == 1 + LONGEST


def test_a_rejected_draft_affects_only_its_evidence() -> None:
    pace = DraftLengthController()
    others: list[Evidence] = [("copy", 1), ("copy", 3), ("phrase", 2), ("resume", 0), ("start", 0)]
    before = [pace.share(each) for each in others]
    for _ in range(60):
        pace.accepted([("copy", 2), ("copy", 3), ("phrase", 2)], 0)
    assert pace.share(("copy", 2)) < 0.1
    assert [pace.share(each) for each in others] == before
    assert usual(pace) == 1


def test_tokens_after_a_rejected_one_are_not_counted() -> None:
    short, long = DraftLengthController(), DraftLengthController()
    for _ in range(10):
        short.accepted(copied(2, 2), 1)
        long.accepted(copied(2, 16), 1)
        short.accepted([], 0)
    assert shares(short) == shares(long)


def test_phrases_are_trusted_by_their_share() -> None:
    trust = [DraftLengthController().share(("phrase", eighth)) for eighth in range(8)]
    assert trust == sorted(set(trust))


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
    drafts = [*[[0.9] * LONGEST] * 4, *[[]] * 4]
    assert steady(0.01, 0.001).width(8, drafts) > 1
    assert steady(0.01, 0.2).width(8, drafts) == 1


def test_calls_without_drafts_have_single_tokens() -> None:
    assert DraftLengthController().width(3, [[]] * 3) == 1


def test_unprofitable_widths_are_tried_less_and_less() -> None:
    pace, tried = steady(0.01, 5.0), []
    for turn in range(2000):
        if pace.width(1, [shares(pace)]) > 1:
            tried.append(turn)
            pace.accepted(copied(2, 1), 0)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1] <= 256
    assert len(tried) < 20


@given(
    drafts=st.lists(st.lists(st.floats(0, 1), max_size=LONGEST), min_size=1, max_size=5),
    calls=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 17), st.floats(-1, 100)), max_size=60),
    outcomes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, LONGEST)), max_size=30),
)
def test_no_call_is_wider_than_the_longest_draft(
    drafts: list[list[float]], calls: list[tuple[int, int, float]], outcomes: list[tuple[int, int, int]]
) -> None:
    pace = DraftLengthController()
    for call in calls:
        pace.took(*call)
    for matched, accepted, drafted in outcomes:
        pace.accepted(copied(matched, drafted), min(accepted, drafted))
    for _ in range(20):
        assert 1 <= pace.width(len(drafts), drafts) <= 1 + max(map(len, drafts))


def test_repeated_refusals_pause_the_search_for_drafts() -> None:
    pace = steady(0.01, 5.0)
    rests = []
    for _ in range(200):
        rests.append(pace.rests(1))
        if not rests[-1]:
            pace.width(1, [shares(pace, length=4)])
    assert not any(rests[:8])
    assert sum(rests) > 100
    assert not all(rests[-40:])  # it looks again
    assert not pace.rests(8)  # of other batches nothing is known


def test_an_accepted_draft_ends_the_pauses() -> None:
    pace = steady(0.01, 0.01)
    for _ in range(50):
        assert not pace.rests(1)
        pace.width(1, [shares(pace)])


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


def test_the_cost_of_a_plain_call_is_measured_again_while_drafts_pay() -> None:
    pace = steady(0.01, 0.02)
    widths = []
    for _ in range(300):
        widths.append(pace.width(1, [shares(pace)]))
        pace.took(1, widths[-1], 0.01)
    assert 2 <= widths.count(1) <= 10
