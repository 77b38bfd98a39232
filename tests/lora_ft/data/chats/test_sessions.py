"""Sessions, contexts and splits: what precedes a message, and that no split has seen another's messages."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.message import Message
from lora_ft.data.chats.sessions import Session, Turn, cut, sessions_of, turns

HOUR = 3600.0


def chat(*times: float, replies: dict[int, int] | None = None) -> list[Message]:
    """A message an entry, its number as its id and text."""
    answered = replies or {}
    return [
        Message(str(i), time, "Ana", f"text {i}", str(answered[i]) if i in answered else None)
        for i, time in enumerate(times)
    ]


def shape(found: list[Turn]) -> dict[int, list[int]]:
    """Ids of the contexts by the id of the message."""
    return {int(turn.response.id): [int(message.id) for message in turn.context] for turn in found}


def one_chat(messages: list[Message], gap: float = 2 * HOUR) -> list[Session]:
    return sessions_of("chat", messages, gap)


def test_sessions_end_at_gaps_that_are_longer() -> None:
    found = one_chat(chat(0, 2 * HOUR, 4 * HOUR + 1, 4 * HOUR + 2))
    assert [[message.id for message in session.messages] for session in found] == [["0", "1"], ["2", "3"]]
    assert sessions_of("chat", [], HOUR) == []


def test_a_context_is_of_the_session_and_reaches_back_where_that_is_short() -> None:
    days = [day * 24 * HOUR + minute for day in (0, 1) for minute in range(6)]
    found = shape(list(turns(one_chat(chat(*days)), context=4, before=3)))
    assert 0 not in found  # nothing precedes the first
    assert found[1] == [0] and found[2] == [0, 1] and found[5] == [1, 2, 3, 4]
    assert found[6] == [3, 4, 5] and found[7] == [4, 5, 6]  # none, then one of the same session
    assert found[8] == [6, 7] and found[9] == [6, 7, 8]


def test_nothing_is_taken_from_before_where_that_is_not_wanted() -> None:
    found = shape(list(turns(one_chat(chat(0, 1, 9 * HOUR, 9 * HOUR + 1)), context=4, before=0)))
    assert found == {1: [0], 3: [2]}


def test_a_context_of_one_message_is_the_last_one() -> None:
    found = shape(list(turns(one_chat(chat(0, 1, 2, 9 * HOUR)), context=1, before=5)))
    assert found == {1: [0], 2: [1], 3: [2]}


def test_an_answered_message_comes_first_in_place_of_the_oldest() -> None:
    replies = {4: 0, 5: 3, 6: 9, 7: 0}
    times = [*map(float, range(7)), 9 * HOUR]
    found = shape(list(turns(one_chat(chat(*times, replies=replies)), context=3, before=2)))
    assert found[4] == [0, 2, 3]  # brought in, and the oldest of 1, 2, 3 has left
    assert found[5] == [2, 3, 4]  # there already
    assert found[6] == [3, 4, 5]  # answers what comes later, or what there is not
    assert found[7] == [0, 5, 6]  # from an earlier session


def test_chats_do_not_mix() -> None:
    sessions = [*sessions_of("a", chat(0, 1), HOUR), *sessions_of("b", chat(2, 3), HOUR)]
    assert [(turn.chat, [m.time for m in turn.context]) for turn in turns(sessions, context=4, before=4)] == [
        ("a", [0]),
        ("b", [2]),
    ]


def test_the_newest_sessions_are_for_testing() -> None:
    sessions = one_chat(chat(*(i * 3 * HOUR for i in range(10))))
    parts = cut(sessions, {"validation": 0.1, "test": 0.2})
    assert {name: len(part) for name, part in parts.items()} == {"train": 7, "validation": 1, "test": 2}
    assert [*parts["train"], *parts["validation"], *parts["test"]] == sessions


def test_too_few_sessions_to_cut_are_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.split needs 3 sessions \(got 2\)"):
        cut(one_chat(chat(0, 9 * HOUR)), {"validation": 0.1, "test": 0.2})


gaps = st.lists(st.sampled_from([0.0, 60.0, 3 * HOUR]), min_size=3, max_size=60)


@st.composite
def chats(draw: st.DrawFn) -> list[Session]:
    """Sessions of one to three chats with replies to anything, later messages and missing ones too."""
    sessions: list[Session] = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        times = list(itertools.accumulate(draw(gaps)))
        answers = draw(st.dictionaries(st.integers(0, len(times)), st.integers(0, len(times)), max_size=20))
        sessions += sessions_of(name, chat(*times, replies=answers), 2 * HOUR)
    return sessions


@given(chats(), st.floats(0.01, 0.6), st.floats(0.01, 0.39), st.integers(1, 10), st.integers(0, 6))
def test_no_split_has_seen_a_message_of_another(
    sessions: list[Session], test: float, validation: float, context: int, before: int
) -> None:
    shares = {"validation": validation, "test": test}
    if len(sessions) <= len(shares):
        return
    parts = cut(sessions, shares)
    assert all(parts.values())
    assert sorted(map(id, itertools.chain(*parts.values()))) == sorted(map(id, sessions))
    seen = {
        name: {
            (turn.chat, message.id)
            for turn in turns(part, context=context, before=before)
            for message in (*turn.context, turn.response)
        }
        for name, part in parts.items()
    }
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    starts = {name: [session.messages[0].time for session in part] for name, part in parts.items()}
    assert max(starts["train"]) <= min(starts["validation"]) and max(starts["validation"]) <= min(starts["test"])


@given(chats(), st.integers(1, 10), st.integers(0, 6))
def test_contexts_are_earlier_messages_of_the_chat(sessions: list[Session], context: int, before: int) -> None:
    order = {
        (session.chat, message.id): place
        for place, (session, message) in enumerate((s, m) for s in sessions for m in s.messages)
    }
    session_of = {(session.chat, message.id): i for i, session in enumerate(sessions) for message in session.messages}
    for turn in turns(sessions, context=context, before=before):
        here = (turn.chat, turn.response.id)
        places = [order[turn.chat, message.id] for message in turn.context]
        assert 1 <= len(places) <= context and places == sorted(set(places)) and places[-1] < order[here]
        own = [m for m in turn.context if session_of[turn.chat, m.id] == session_of[here]]
        answered = [m for m in turn.context if m.id == turn.response.reply_to]
        assert len(own) < 2 or len(own) + len(answered) >= len(turn.context)
        preceding = order[here] - order[turn.chat, sessions[session_of[here]].messages[0].id]
        assert len(own) >= min(preceding, context) - 1


@given(chats(), st.floats(0.01, 0.9))
def test_a_share_is_met_as_nearly_as_whole_sessions_allow(sessions: list[Session], share: float) -> None:
    if len(sessions) < 2:
        return
    parts = cut(sessions, {"test": share})
    total = sum(len(session.messages) for session in sessions)
    count = sum(len(session.messages) for session in parts["test"])
    longest = max(len(session.messages) for session in sessions)
    assert abs(count - share * total) <= longest or len(parts["train"]) == 1
