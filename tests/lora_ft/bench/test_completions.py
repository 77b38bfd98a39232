"""Bodies of requests, and the times and texts of replies."""

from __future__ import annotations

import json

import pytest

from lora_ft.bench.completions import Request, body_of, read_reply
from lora_ft.bench.http_client import Response

STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def event(text: str = "", usage: int | None = None) -> bytes:
    """Return one event of a stream."""
    content: dict[str, object] = {"choices": [{"index": 0, "text": text}] if usage is None else []}
    if usage is not None:
        content["usage"] = {"completion_tokens": usage}
    return f"data: {json.dumps(content)}\n\n".encode()


def test_requests_are_greedy_and_ask_for_token_counts_in_streams() -> None:
    request = Request("a1", "text", 8)
    plain = {"model": "a1", "prompt": "text", "temperature": 0, "max_tokens": 8}
    assert json.loads(body_of(request, stream=False)) == plain
    assert json.loads(body_of(request, stream=True)) == {
        **plain,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "max_tokens" not in json.loads(body_of(Request("a1", "text"), stream=True))


def test_times_of_a_stream_count_from_the_time_at_which_it_was_due() -> None:
    pieces = [(12.0, event("a")), (13.0, event("b")), (13.5, event("")), (14.0, event(usage=7) + b"data: [DONE]\n\n")]
    reply = read_reply(Response(200, STREAM, pieces, 14.5), due=10.0, sent=10.25)
    assert (reply.first, reply.last, reply.end, reply.late) == (2.0, 3.0, 4.5, 0.25)
    assert (reply.text, reply.tokens, reply.status) == ("ab", 7, 200)


def test_an_event_that_is_split_has_the_time_of_its_end() -> None:
    whole = b": comment\r\n\r\n" + event("a")
    pieces = [(float(i), whole[i : i + 1]) for i in range(len(whole))]
    reply = read_reply(Response(200, STREAM, pieces, 99.0), due=0.0, sent=0.0)
    assert reply.first == len(whole) - 1
    assert reply.tokens == 1  # the server does not state it


def test_an_answer_without_a_stream_has_its_first_text_at_the_end() -> None:
    body = json.dumps({"choices": [{"text": "x"}], "usage": {"completion_tokens": 3}}).encode()
    reply = read_reply(Response(200, {"content-type": "application/json"}, [(4.0, body)], 4.0), due=1.0, sent=1.0)
    assert (reply.first, reply.end, reply.text, reply.tokens) == (3.0, 3.0, "x", 3)


@pytest.mark.parametrize(
    ("body", "message"), [(b'{"error": {"message": "full"}}', "full"), (b"<html>", "<html>"), (b"[]", "[]")]
)
def test_an_error_has_the_message_of_the_server(body: bytes, message: str) -> None:
    reply = read_reply(Response(429, {}, [(1.0, body)], 1.0), due=0.0, sent=0.0)
    assert (reply.status, reply.text) == (429, message)


def test_a_stream_that_ends_with_an_error_has_failed() -> None:
    pieces = [(1.0, event("a")), (2.0, b'data: {"error": {"message": "deadline"}}\n\n')]
    reply = read_reply(Response(200, STREAM, pieces, 2.0), due=0.0, sent=0.0)
    assert (reply.status, reply.text) == (0, "deadline")
