"""A stream that is continued by another answer, which is cut into other events, is the whole answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.deploy.stream_position import DifferentAnswer, StreamPosition

TOKENS = ("The", " train", " to", "", " Köln", " is", " late", ".")
SCORES = [-0.5 * number for number in range(len(TOKENS))]
DONE = b"data: [DONE]"
KINDS = ("generate", "completion", "chat")


def cuts() -> st.SearchStrategy[list[int]]:
    """Positions of cuts between tokens."""
    return st.lists(st.integers(1, len(TOKENS) - 1), unique=True).map(sorted)


def pieces(cut: Sequence[int]) -> list[tuple[list[str], list[float], str | None]]:
    """Tokens, scores and the reason of the end of each piece."""
    edges = [0, *cut, len(TOKENS)]
    return [(list(TOKENS[a:b]), SCORES[a:b], "stop" if b == len(TOKENS) else None) for a, b in pairwise(edges)]


def generate_events(cut: Sequence[int], row: int, time: int) -> list[dict[str, Any]]:
    return [
        {"row": row, "answer": 0, "text": "".join(tokens), "tokens": len(tokens), "scores": scores, "finish": finish}
        for tokens, scores, finish in pieces(cut)
    ]


def completion_events(cut: Sequence[int], row: int, time: int) -> list[dict[str, Any]]:
    return [
        {
            "id": "one",
            "created": time,
            "choices": [
                {
                    "index": row,
                    "text": "".join(tokens),
                    "logprobs": {"tokens": tokens, "token_logprobs": scores, "top_logprobs": None},
                    "finish_reason": finish,
                }
            ],
        }
        for tokens, scores, finish in pieces(cut)
    ]


def chat_events(cut: Sequence[int], row: int, time: int) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    for tokens, scores, finish in pieces(cut):
        entries = [{"token": token, "logprob": score} for token, score in zip(tokens, scores, strict=True)]
        logprobs = {"content": entries, "refusal": None}
        choices.append({"delta": {"content": "".join(tokens)}, "logprobs": logprobs, "finish_reason": None})
        if finish:
            choices.append({"delta": {}, "logprobs": None, "finish_reason": finish})
    return [{"id": "one", "created": time, "choices": [{"index": row, **choice}]} for choice in choices]


def stream(kind: str, cut: Sequence[int], time: int = 1) -> list[bytes]:
    """Events of two answers, one after the other, and those at the end."""
    events = {"generate": generate_events, "completion": completion_events, "chat": chat_events}[kind]
    values = [*events(cut, 0, time), *events(cut[::2], 1, time), {"usage": {"total_tokens": 9}}]
    return [*(b"data: " + json.dumps(value).encode() for value in values), DONE]


def whole(events: Sequence[bytes]) -> dict[str, list[Any]]:
    """Return all values of a stream by their place. Texts and lists are joined, counts are added."""
    joined: dict[str, list[Any]] = {}

    def add(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{place}.{name}", inner)
        elif isinstance(value, list | str):
            joined.setdefault(place, []).extend(value)
        elif place.endswith(".tokens"):
            joined[place] = [joined.get(place, [0])[0] + value]

    for event in events[:-1]:
        content = json.loads(event.removeprefix(b"data: "))
        answer = content["choices"][0] if "choices" in content else content
        add(f"{answer.get('index', answer.get('row'))}", answer)
    return joined


@pytest.mark.parametrize("kind", KINDS)
@given(first=cuts(), second=cuts(), received=st.integers(0, 30))
def test_a_continued_stream_is_the_whole_answer(kind: str, first: list[int], second: list[int], received: int) -> None:
    position = StreamPosition()
    answer = stream(kind, first)
    client = [position.remainder(event) for event in answer[:received]]
    assert client == answer[:received]  # without a restart, events are not changed
    position.restart()
    client += [rest for event in stream(kind, second, time=2) if (rest := position.remainder(event))]
    assert whole(client) == whole(answer)
    assert client.count(DONE) == 1
    assert position.events == len(client)
    assert all(b'"created": 2' not in event for event in client[received:]) or not received


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_twice(kind: str) -> None:
    position = StreamPosition()
    for event in stream(kind, [2]):
        assert position.remainder(event) == event
    position.restart()
    assert {position.remainder(event) for event in stream(kind, [1, 5])} == {b""}


@pytest.mark.parametrize("kind", KINDS)
def test_another_text_is_not_a_continuation(kind: str) -> None:
    position = StreamPosition()
    for event in stream(kind, [3])[:2]:
        position.remainder(event)
    position.restart()
    with pytest.raises(DifferentAnswer, match="differs"):
        for event in stream(kind, [1, 4]):
            position.remainder(event.replace(b"train", b"plane"))


def test_a_shorter_answer_is_not_a_continuation() -> None:
    position = StreamPosition()
    position.remainder(stream("generate", [3])[0])
    position.restart()
    position.remainder(stream("generate", [1])[0])
    with pytest.raises(DifferentAnswer, match="shorter"):
        position.remainder(DONE)


def test_an_error_is_passed_on() -> None:
    event = b'data: {"error": {"message": "no"}}'
    position = StreamPosition()
    position.restart()
    assert position.remainder(event) == event
