"""Sessions, contexts and splits: the messages of a context, and splits that share no messages."""

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


def shape(yielded: list[Turn]) -> dict[int, list[int]]:
    """Ids of the contexts by the id of the message."""
    return {int(turn.response.id): [int(message.id) for message in turn.context] for turn in yielded}


def one_chat(messages: list[Message], gap: float = 2 * HOUR) -> list[Session]:
    return sessions_of("chat", messages, gap)


def test_sessions_end_at_longer_gaps() -> None:
    sessions = one_chat(chat(0, 2 * HOUR, 4 * HOUR + 1, 4 * HOUR + 2))
    assert [[message.id for message in session.messages] for session in sessions] == [["0", "1"], ["2", "3"]]
    assert sessions_of("chat", [], HOUR) == []


def test_context_of_a_short_session_includes_earlier_sessions() -> None:
    days = [day * 24 * HOUR + minute for day in (0, 1) for minute in range(6)]
    contexts = shape(list(turns(one_chat(chat(*days)), context=4, before=3)))
    assert 0 not in contexts  # nothing precedes the first
    assert contexts[1] == [0] and contexts[2] == [0, 1] and contexts[5] == [1, 2, 3, 4]
    assert contexts[6] == [3, 4, 5] and contexts[7] == [4, 5, 6]  # none, then one of the same session
    assert contexts[8] == [6, 7] and contexts[9] == [6, 7, 8]


def test_context_excludes_earlier_sessions_if_before_is_zero() -> None:
    contexts = shape(list(turns(one_chat(chat(0, 1, 9 * HOUR, 9 * HOUR + 1)), context=4, before=0)))
    assert contexts == {1: [0], 3: [2]}


def test_context_of_one_message_is_the_last_one() -> None:
    contexts = shape(list(turns(one_chat(chat(0, 1, 2, 9 * HOUR)), context=1, before=5)))
    assert contexts == {1: [0], 2: [1], 3: [2]}


def test_answered_message_replaces_the_oldest() -> None:
    replies = {4: 0, 5: 3, 6: 9, 7: 0}
    times = [*map(float, range(7)), 9 * HOUR]
    contexts = shape(list(turns(one_chat(chat(*times, replies=replies)), context=3, before=2)))
    assert contexts[4] == [0, 2, 3]  # brought in, and the oldest of 1, 2, 3 has left
    assert contexts[5] == [2, 3, 4]  # there already
    assert contexts[6] == [3, 4, 5]  # answers what comes later, or what there is not
    assert contexts[7] == [0, 5, 6]  # from an earlier session


def test_chats_do_not_mix() -> None:
    sessions = [*sessions_of("a", chat(0, 1), HOUR), *sessions_of("b", chat(2, 3), HOUR)]
    assert [(turn.chat, [m.time for m in turn.context]) for turn in turns(sessions, context=4, before=4)] == [
        ("a", [0]),
        ("b", [2]),
    ]


def test_newest_sessions_are_the_test_split() -> None:
    sessions = one_chat(chat(*(i * 3 * HOUR for i in range(10))))
    parts = cut(sessions, {"validation": 0.1, "test": 0.2})
    assert {name: len(part) for name, part in parts.items()} == {"train": 7, "validation": 1, "test": 2}
    assert [*parts["train"], *parts["validation"], *parts["test"]] == sessions


def test_too_few_sessions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.split requires 3 sessions \(got 2\)"):
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
def test_splits_share_no_messages(
    sessions: list[Session], test: float, validation: float, context: int, before: int
) -> None:
    shares = {"validation": validation, "test": test}
    if len(sessions) <= len(shares):
        return
    parts = cut(sessions, shares)
    assert all(parts.values())
    assert sorted(map(id, itertools.chain(*parts.values()))) == sorted(map(id, sessions))
    ids = {
        name: {
            (turn.chat, message.id)
            for turn in turns(part, context=context, before=before)
            for message in (*turn.context, turn.response)
        }
        for name, part in parts.items()
    }
    for left_ids, right_ids in itertools.combinations(ids.values(), 2):
        assert not left_ids & right_ids
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
        key = (turn.chat, turn.response.id)
        places = [order[turn.chat, message.id] for message in turn.context]
        assert 1 <= len(places) <= context and places == sorted(set(places)) and places[-1] < order[key]
        same_session = [m for m in turn.context if session_of[turn.chat, m.id] == session_of[key]]
        answered = [m for m in turn.context if m.id == turn.response.reply_to]
        assert len(same_session) < 2 or len(same_session) + len(answered) >= len(turn.context)
        preceding = order[key] - order[turn.chat, sessions[session_of[key]].messages[0].id]
        assert len(same_session) >= min(preceding, context) - 1


@given(chats(), st.floats(0.01, 0.9))
def test_share_is_met_as_closely_as_whole_sessions_allow(sessions: list[Session], share: float) -> None:
    if len(sessions) < 2:
        return
    parts = cut(sessions, {"test": share})
    total = sum(len(session.messages) for session in sessions)
    count = sum(len(session.messages) for session in parts["test"])
    longest = max(len(session.messages) for session in sessions)
    assert abs(count - share * total) <= longest or len(parts["train"]) == 1
