"""Prompt lookup says what greedy search says, in fewer calls where the answer copies from its source."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.decoding import draft_length
from lora_ft.export.runtime.decoding import prompt_lookup as lookup
from lora_ft.export.runtime.decoding.calls import run
from lora_ft.export.runtime.decoding.draft_length import LONGEST, DraftLengthController
from lora_ft.export.runtime.decoding.prompt_lookup import _Row
from lora_ft.export.runtime.phrases import NO_PHRASES, Phrases
from tests.export.oracle import END, PAD, torch_greedy
from tests.export.runtime.cases import Pair, words

START, WRONG = 0, 99
SPECIAL = SpecialTokens(START, (END,), PAD)
Token = st.integers(2, 6)  # few, so that sequences of them repeat


@pytest.fixture(autouse=True)
def no_measured_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the time of all calls to 0, so that drafts depend neither on the machine nor on earlier tests."""
    monkeypatch.setattr(draft_length, "_CONTROLLERS", WeakKeyDictionary())
    monkeypatch.setattr(lookup, "time", SimpleNamespace(perf_counter=lambda: 0.0))


class Known:
    """Stands for a model whose greedy answers are known: it has them only for the tokens that lead there.

    What it says after a token is right only where all tokens up to there are the answer's.
    """

    def __init__(self, answers: Sequence[Sequence[int]], limit: int) -> None:
        self._answers = [list(answer) for answer in answers]
        self._limit = limit
        self.widths: list[int] = []
        self.rows: list[int] = []

    def source(self) -> Source:
        return Source(len(self._answers), [np.arange(len(self._answers))])

    def cache(self, rows: int) -> Cache:
        return Cache([np.full((rows, self._limit + LONGEST), WRONG)], rows, self._limit + LONGEST)

    def step(self, source: Source, cache: Cache, tokens: np.ndarray, *, forbid_eos: bool = False) -> np.ndarray:
        assert len(tokens) == source.rows == cache.rows
        self.widths.append(tokens.shape[1])
        self.rows.append(source.rows)
        lengths = np.broadcast_to(cache.lengths, cache.rows)
        best = np.full(tokens.shape, WRONG)
        for i, number in enumerate(source.values[0]):
            for j in range(tokens.shape[1]):
                if j and tokens[i, j] == SPECIAL.pad:
                    break  # a shorter draft than another row's
                position = lengths[i] + j
                cache.values[0][i, position] = tokens[i, j]
                best[i, j] = self._next(self._answers[number], cache.values[0][i, : position + 1].tolist())
        cache.lengths = cache.lengths + tokens.shape[1]
        return best

    def _next(self, answer: list[int], tokens: list[int]) -> int:
        length = len(tokens) - 1
        assert length < self._limit or self.rows[-1] > 1  # a row that has ended may stay among others for some calls
        return answer[length] if length < len(answer) and tokens == [START, *answer[:length]] else WRONG

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        return Source(len(rows), [source.values[0][rows]])

    def select_cache(self, cache: Cache, rows: np.ndarray) -> None:
        cache.values, cache.rows = [cache.values[0][rows]], len(rows)
        if len(cache.lengths) > 1:
            cache.lengths = cache.lengths[rows]


def found(model: Known, sources: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """The answers that prompt lookup finds."""
    answers: list[list[int]] = [[] for _ in sources]
    ids = [np.array(row) for row in sources]
    for piece in run(model, model.source(), 1, lookup.search(ids, Options(max_new_tokens=limit), SPECIAL)):  # type: ignore[arg-type]
        assert len(piece.tokens)
        answers[piece.answer] += piece.tokens.tolist()
    return answers


def alone(source: Sequence[int], answer: Sequence[int]) -> Known:
    """The model after it found one answer, without a limit."""
    model = Known([answer], len(answer))
    assert found(model, [source], len(answer)) == [list(answer)]
    return model


@st.composite
def copying(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A source, and an answer of parts of it and other tokens, with an end or without."""
    source = draw(st.lists(Token, max_size=25))
    part = st.tuples(st.integers(0, len(source)), st.integers(0, 12)).map(lambda place: source[place[0] :][: place[1]])
    parts = draw(st.lists(st.one_of(part, st.lists(Token, max_size=3)), max_size=6))
    end = [END] if draw(st.booleans()) else [2] * 40
    return [*source, END], [*(token for some in parts for token in some), *end]


@given(rows=st.lists(copying(), min_size=1, max_size=5), limit=st.integers(1, 30), data=st.data())
def test_answers_are_those_of_the_model_whatever_calls_cost(
    rows: list[tuple[list[int], list[int]]], limit: int, data: st.DataObject
) -> None:
    times = iter(np.cumsum(data.draw(st.lists(st.floats(0, 0.1), min_size=1, max_size=80))).tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "time", SimpleNamespace(perf_counter=lambda: next(times, 100.0)))
        model = Known([answer for _, answer in rows], limit)
        answers = found(model, [source for source, _ in rows], limit)
    assert answers == [answer[:limit] for _, answer in rows]
    assert len(model.widths) <= max(map(len, answers))
    assert model.rows == sorted(model.rows, reverse=True)


@pytest.mark.parametrize(("length", "calls", "widest"), [(20, 5, 9), (60, 9, 13), (200, 20, 17)])
def test_a_copy_of_the_source_takes_a_fraction_of_the_calls(length: int, calls: int, widest: int) -> None:
    source = list(range(100, 100 + length))
    model = alone([*source, END], [*source, END])
    assert len(model.widths) <= calls
    assert max(model.widths) >= widest


def test_copied_parts_are_found_wherever_they_stand() -> None:
    source = list(range(100, 160))
    answer = [*source[40:], 5, *source[10:30], 6, 7, *source[:20], END]
    assert len(alone([*source, END], answer).widths) < len(answer) / 3


def test_an_answer_of_its_own_takes_a_call_for_each_token() -> None:
    model = alone([*range(100, 130), END], [*range(30, 60), END])
    assert model.widths == [1] * 31


def test_drafts_grow_rare_where_they_are_rejected() -> None:
    source = [token for new in range(100, 250) for token in (5, new)]
    answer = [token for new in range(300, 400) for token in (5, new, new + 200)]
    model = alone([*source, END], answer)
    drafted = [turn for turn, width in enumerate(model.widths) if width > 1]
    assert len(model.widths) == 300
    assert 1 <= drafted[0] < 5
    assert len(drafted) < 30
    assert drafted[-1] > 100  # it keeps trying
    assert set(model.widths[100:]) == {1, 2}


def test_an_answer_that_repeats_itself_is_drafted_from_itself() -> None:
    part = [*range(30, 50)]
    assert len(alone([7, END], [*part, *part, *part, END]).widths) < 20 + 15


def test_an_end_that_was_drafted_ends_the_answer() -> None:
    source = [10, 11, 12, 13, END, 14, 15, END]
    model = Known([[10, 11, 12, 13, END]], 20)
    assert found(model, [source], 20) == [[10, 11, 12, 13, END]]
    assert max(model.widths) > 1


@pytest.mark.parametrize("limit", range(1, 12))
def test_no_draft_goes_beyond_the_limit(limit: int) -> None:
    source = [*range(100, 140), END]
    assert found(Known([source], limit), [source], limit) == [source[:limit]]  # the model checks each position


def test_rows_leave_as_they_end_and_keep_their_answers() -> None:
    sources = [[*range(100 * i, 100 * i + 20), END] for i in range(1, 5)]
    answers = [[7, END], sources[1], [*range(30, 45), END], [END]]
    model = Known(answers, 40)
    assert found(model, sources, 40) == answers
    assert model.rows[:3] == [4, 3, 2]
    assert model.rows[-1] == 1
    assert len(model.rows) == 16


def test_a_row_that_drafts_does_not_hold_up_one_that_cannot() -> None:
    source = [*range(100, 130), END]
    model = Known([source, [*range(30, 60), END]], 40)
    assert found(model, [source, [40, END]], 40) == [source, [*range(30, 60), END]]
    assert len(model.rows) == 31
    assert model.rows.count(2) < 12


@pytest.mark.parametrize("limit", [1, 7, 40])
def test_answers_are_those_of_greedy_search_and_of_transformers(pair: Pair, limit: int) -> None:
    ids, mask = pair.encode(words(limit, 9))
    answers = pair.generator.generate_ids(ids, mask, max_new_tokens=limit, prompt_lookup=True)
    assert np.array_equal(answers, torch_greedy(pair.torch, ids, mask, limit))
    for start in range(0, len(ids), 4):
        some = ids[start : start + 4], mask[start : start + 4]
        drafted, plain = (
            pair.generator.generate_ids(*some, max_new_tokens=limit, prompt_lookup=lookup) for lookup in (True, False)
        )
        assert np.array_equal(drafted, plain)


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.6), (0.1, 0.9), (0.3, 1.0)])
@pytest.mark.parametrize("size", [1, 5])
def test_answers_are_those_of_greedy_search_where_drafts_are_taken(
    pair: Pair, noise: float, share: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts are of what the model will say, with some tokens changed: random models copy no sources."""
    model, limit, rng = pair.generator.model, 40, np.random.default_rng(5)
    queries: list[int] = []
    step = model.step

    def counted(source: Source, cache: Cache, tokens: np.ndarray, *arguments: Any, **keys: Any) -> np.ndarray:
        queries.append(tokens.shape[1])
        return step(source, cache, tokens, *arguments, **keys)

    monkeypatch.setattr(model, "step", counted)
    most = 0
    for start in range(0, 9, size):
        ids, mask = (array[start : start + size] for array in pair.encode(words(2, 9)))
        expected = torch_greedy(pair.torch, ids, mask, limit)
        hints = [np.where(rng.random(row.shape) < noise, rng.integers(2, 70, row.shape), row) for row in expected]
        answers: list[list[int]] = [[] for _ in hints]
        for piece in run(
            model, model.encode(ids, mask), 1, lookup.search(hints, Options(max_new_tokens=limit), SPECIAL)
        ):
            answers[piece.answer] += piece.tokens.tolist()
        assert answers == [SPECIAL.trim(row).tolist() for row in expected]
        most += max(map(len, answers))
    assert len(queries) <= most * share
    if size == 1 and noise:
        assert sum(queries) > most  # some drafts are rejected


def row_of(source: Sequence[int], answer: Sequence[int], phrases: Phrases = NO_PHRASES) -> _Row:
    pace = DraftLengthController()
    pace.phrases = phrases
    row = _Row(0, list(source), START, pace)
    if answer:
        row.extend(list(answer))
    return row


def drafted(row: _Row, most: int = LONGEST) -> list[int]:
    row.draft(most)
    assert len(row.evidence) == len(row.drafted)
    return row.drafted


@pytest.mark.parametrize(
    ("source", "answer", "matched", "draft"),
    [
        ([5, 6, 7, 8, 9, END], [], 0, []),
        ([5, 6, 7, 8, 9, END], [4], 0, []),
        ([5, 6, 7, 8, 9, END], [7], 1, [8, 9, END]),
        ([5, 6, 7, 8, 9, END], [6, 7], 2, [8, 9, END]),
        ([5, 6, 7, 8, 9, END], [5, 6, 7], 3, [8, 9, END]),
        ([5, 6, 7, 8, 9, END], [4, 5, 6, 7, 8], 3, [9, END]),
        ([5, 6, 7, 8, 9, END], [9, 9, END], 0, []),  # nothing follows the end
        ([5, 6, 7, 5, 8, 9], [6], 1, [7, 5, 8, 9]),
        ([5, 1, 7, 6, 5, 8, 9], [6, 5], 2, [8, 9]),  # the longer match, though the shorter is earlier
        ([4, 5, 6, 10, 3, 5, 6, 11, 2, 5, 6, 12], [3, 5, 6], 3, [11, 2, 5, 6, 12]),
        ([END], [5], 0, []),
    ],
)
def test_the_longest_sequence_that_the_source_has_is_gone_on_with(
    source: list[int], answer: list[int], matched: int, draft: list[int]
) -> None:
    row = row_of(source, answer)
    assert drafted(row) == draft
    assert row.evidence[:1] == ([("copy", matched)] if matched else [])


def test_the_next_of_several_places_is_taken() -> None:
    source = [5, 10, 20, 21, 5, 11, 22, 23, 5, 12]
    row = row_of(source, [5])
    assert drafted(row, 1) == [10]
    row.extend([21])
    assert drafted(row, 1) == [5]
    row.extend([5])  # with 21 before it
    assert drafted(row, 1) == [11]
    row.extend([9, 5])
    assert drafted(row, 2) == [11, 22]
    row.extend([23])
    assert drafted(row, 1) == [5]
    row.extend([8, 5])
    assert drafted(row, 2) == [12]


def test_where_none_is_left_the_last_place_is_taken() -> None:
    row = row_of([5, 10, 5, 11, 30, 31], [30])
    assert drafted(row, 1) == [31]
    row.extend([8, 5])
    assert drafted(row, 1) == [11]


def test_a_copy_resumes_behind_a_replaced_token() -> None:
    row = row_of([10, 11, 12, 13, 14, 15, END], [10, 11])
    assert drafted(row) == [12, 13, 14, 15, END]
    row.extend([99])  # instead of 12
    assert drafted(row) == [13, 14, 15, END]
    assert row.evidence[0] == ("resume", 0)
    row.extend([98, 97])
    assert drafted(row) == [15, END]
    row.extend([96, 95, 94])  # the source is over
    assert drafted(row) == []


def test_an_answer_starts_where_the_last_one_started() -> None:
    sources = [[7, 8, *range(start, start + 30), END] for start in (100, 200)]
    model = Known([source[2:] for source in sources], 40)
    pace = draft_length.controller_of(model)
    for number, source in enumerate(sources):
        row = _Row(0, source, START, pace)
        assert drafted(row, 3) == (source[2:5] if number else [])
        row.extend(source[2:4])
        row.draft(3)


PHRASES = Phrases.count([[50, 51, 52, 53, END]] * 3 + [[50, 60, 61, END]] * 4, START)


def test_phrases_are_drafted_from_the_start_to_the_end() -> None:
    row = row_of([END], [], PHRASES)
    assert drafted(row) == [50, 60, 61, END]
    assert {origin for origin, _ in row.evidence} == {"phrase"}
    row.extend([50, 51])
    assert drafted(row) == [52, 53, END]


def test_a_draft_goes_from_a_phrase_to_the_source_and_back() -> None:
    phrases = Phrases.count([[50, 51, name, 53, 54, 55, END] for name in (1, 2, 3, 4)], START)
    row = row_of([51, 30, 53, 8, END], [50], phrases)
    for _ in range(50):  # phrases are right and copies end early
        row._pace.accepted([("phrase", 6)], 1)
        row._pace.accepted([("copy", 3)], 0)
    assert drafted(row) == [51, 30, 53, 54, 55, END]


@given(
    answers=st.lists(st.lists(Token, min_size=1, max_size=8), max_size=12),
    rows=st.lists(copying(), min_size=1, max_size=4),
    limit=st.integers(1, 30),
)
def test_phrases_change_no_answer(
    answers: list[list[int]], rows: list[tuple[list[int], list[int]]], limit: int
) -> None:
    model = Known([answer for _, answer in rows], limit)
    draft_length.controller_of(model).phrases = Phrases.count([[*answer, END] for answer in answers * 3], START)
    assert found(model, [source for source, _ in rows], limit) == [answer[:limit] for _, answer in rows]


def test_answers_of_phrases_take_a_fraction_of_the_calls() -> None:
    answer = [*range(40, 80), END]
    model = Known([answer] * 2, 60)
    draft_length.controller_of(model).phrases = Phrases.count([answer] * 3, START)
    for number in range(2):
        model._answers = [answer]
        assert found(model, [[7, number + 2, END]], 60) == [answer]
    assert len(model.widths) < 2 * len(answer) / 4


@given(source=st.lists(Token, min_size=1, max_size=30), answer=st.lists(Token, max_size=10), most=st.integers(0, 20))
def test_a_draft_begins_as_the_last_tokens_went_on_somewhere(source: list[int], answer: list[int], most: int) -> None:
    row = row_of(source, answer)
    draft = drafted(row, most)
    assert len(draft) <= min(most, LONGEST)
    nexts = {
        n: {rest[0] for rest in follow(source, answer[-n:]) + (follow(answer, answer[-n:]) if n > 1 else [])}
        for n in range(1, min(3, len(answer)) + 1)
    }
    longest = max((n for n, tokens in nexts.items() if tokens), default=0)
    if draft:
        assert row.evidence[0] == ("copy", longest)
        assert draft[0] in nexts[longest]
    else:
        assert not longest or not most


def follow(source: list[int], tokens: list[int]) -> list[list[int]]:
    """Return the rest of the source after each occurrence of some tokens; empty rests are left out."""
    n = len(tokens)
    return [source[i:] for i in range(n, len(source)) if source[i - n : i] == tokens] if n else []


def test_options_without_drafts_go_another_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("lookup was asked")

    monkeypatch.setattr(lookup, "search", never)
    for options in ({"prompt_lookup": False}, {"min_new_tokens": 3}, {"num_beams": 2}, {"repetition_penalty": 1.5}):
        pair.made(words(0), **({"prompt_lookup": True, "max_new_tokens": 5} | options))
    with pytest.raises(AssertionError, match="lookup was asked"):
        pair.made(words(0), prompt_lookup=True)
