"""Requests to a judge: repeated where that may help, refused where it cannot, and never paid for twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.evaluation.judge_client import JudgeClient, Reply
from lora_ft.tasks.judge import Judge
from tests.lora_ft.evaluation.judge_server import Answer, judge_server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Use an empty cache, and record waits instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lora_ft.evaluation.judge_client._sleep", seconds.append)
    return seconds


def client(url: str, key: str | None = None, **settings: Any) -> JudgeClient:
    return JudgeClient(Judge(url=url, model="m", prompt="{answer}", **settings), key)


def test_a_request_is_openais_without_sampling() -> None:
    with judge_server(lambda prompt: f"<{prompt}>") as server:
        assert client(server.url, "secret").ask(["a", "ß"]) == [Reply("<a>"), Reply("<ß>")]
        assert client(f"{server.url}/").ask(["b"]) == [Reply("<b>")]
    path, headers, body = server.requests[-1]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert body == {"model": "m", "messages": [{"role": "user", "content": "b"}], "temperature": 0}
    assert server.requests[0][1]["Authorization"] == "Bearer secret"


def test_replies_keep_their_order_at_any_concurrency() -> None:
    prompts = [str(i) for i in range(40)]
    with judge_server(lambda prompt: f"{prompt}!") as server:
        assert [reply.text for reply in client(server.url, concurrency=8).ask(prompts)] == [f"{p}!" for p in prompts]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_busy_servers_are_asked_again_after_growing_waits(status: int, waits: list[float]) -> None:
    failures: list[Answer] = [(status, {}), (status, {"Retry-After": "7"}), (status, {"Retry-After": "9999"})]
    with judge_server(lambda prompt: failures.pop(0) if failures else "4") as server:
        assert client(server.url).ask(["a"]) == [Reply("4")]
    assert 0.5 <= waits[0] <= 1 and waits[1:] == [7, 60]


def test_a_server_that_stays_busy_ends_the_evaluation_and_keeps_its_replies(waits: list[float]) -> None:
    good = {"a"}
    with judge_server(lambda prompt: "4" if prompt in good else (503, {})) as server:
        with pytest.raises(
            LoraFtError, match=r"does not answer \(HTTP 503: status 503\); .*replies .* are kept"
        ) as error:
            client(server.url, concurrency=1).ask(["a", "b", "c"])
        assert not isinstance(error.value, UsageError)
        assert len(waits) == 5 and waits == sorted(waits)
        assert server.prompts.count("b") == 6
        good |= {"b", "c"}
        server.requests.clear()
        assert client(server.url).ask(["a", "b", "c"]) == [Reply("4")] * 3
    assert sorted(server.prompts) == ["b", "c"]


@pytest.mark.parametrize(("status", "remedy"), [(401, "check the key in KEY"), (403, "key"), (404, "check url, model")])
def test_requests_that_cannot_succeed_are_not_repeated(status: int, remedy: str, waits: list[float]) -> None:
    with judge_server(lambda prompt: (status, {})) as server:
        with pytest.raises(UsageError, match=rf"refused the request \(HTTP {status}: status {status}\); .*{remedy}"):
            client(server.url, "secret", key_variable="KEY").ask(["a"])
        assert len(server.requests) == 1 and not waits


def test_redirects_are_not_followed() -> None:
    with judge_server(lambda prompt: "4") as other:
        moved: Answer = (307, {"Location": f"{other.url}/chat/completions"})
        with judge_server(lambda prompt: moved) as server, pytest.raises(UsageError, match="HTTP 307"):
            client(server.url, "secret").ask(["a"])
        assert not other.requests


def test_a_server_that_is_not_there_is_an_error(waits: list[float]) -> None:
    with judge_server(lambda prompt: "4") as server:
        url = server.url
    with pytest.raises(LoraFtError, match="does not answer"):
        client(url).ask(["a"])
    assert len(waits) == 5


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 4}}]}'])
def test_other_servers_are_refused(body: bytes) -> None:
    with judge_server(lambda prompt: body) as server, pytest.raises(LoraFtError, match="does not speak OpenAI's API"):
        client(server.url).ask(["a"])


def test_refusals_and_cut_replies_are_told_apart() -> None:
    choices: dict[str, Answer] = {
        "refusal": {"refusal": "I cannot do that."},
        "filter": {"content": "4", "finish_reason": "content_filter"},
        "length": {"content": "4", "finish_reason": "length"},
        "nothing": {},
    }
    with judge_server(choices.__getitem__) as server:
        replies = dict(zip(choices, client(server.url).ask(list(choices)), strict=True))
    assert replies == {
        "refusal": Reply("I cannot do that.", refused=True),
        "filter": Reply("4", refused=True),
        "length": Reply("4", cut=True),
        "nothing": Reply(""),
    }


def test_a_request_is_sent_once_unless_something_of_it_changes(tmp_path: Path) -> None:
    with judge_server(lambda prompt: "4") as server:
        for _ in range(3):
            client(server.url).ask(["a", "b"])
        assert sorted(server.prompts) == ["a", "b"]
        JudgeClient(Judge(url=server.url, model="other", prompt="{answer}"), None).ask(["a"])
        assert len(server.requests) == 3
        stored = list((tmp_path / "cache" / "judge").rglob("*.json"))
        assert len(stored) == 3 and json.loads(stored[0].read_text()) == {"text": "4", "refused": False, "cut": False}
        stored[0].write_text("damaged")
        stored[1].write_text("{}")
        client(server.url).ask(["a", "b"])
        JudgeClient(Judge(url=server.url, model="other", prompt="{answer}"), None).ask(["a"])
        assert len(server.requests) == 5
