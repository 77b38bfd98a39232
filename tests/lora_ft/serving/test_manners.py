"""Manners in production: keys, ids, logs, metrics, full queues, clients that leave, drains, failures."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lora_ft.core.errors import BundleError, LoraFtError, UsageError
from lora_ft.serving.event_stream import EventStream
from lora_ft.serving.keys import ApiKeys
from tests.lora_ft.serving.conftest import Running, serving, wait_for
from tests.lora_ft.serving.fake_engine import FakeEngine

BODY = {"model": "echo", "prompt": "abc"}
KEY = "correct horse battery".replace(" ", "-")


def test_a_key_is_required_where_there_are_keys(engine: FakeEngine) -> None:
    with serving({"echo": engine}, keys=["other", KEY]) as running:
        assert running.client(KEY).completions.create(model="echo", prompt="ab").choices[0].text == "ba"
        for key in ("wrong", KEY[:-1], KEY + "x", "käse"):
            response = running.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert running.get("/v1/models").status_code == 401
        assert running.get("/v1/models", headers={"Authorization": f"Basic {KEY}"}).status_code == 401
        for path in ("/", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
            assert running.get(path).status_code == 200
        assert KEY not in running.log.getvalue()


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\none\n\n  two  \n", encoding="utf-8")
    keys = ApiKeys.read(file, {"LORA_FT_API_KEY": "three four"})
    for key in ("one", "two", "three", "four"):
        keys.require(f"bearer {key}")
    assert not ApiKeys.read(None, {})
    file.write_text("# nothing\n", encoding="utf-8")
    for broken, environment in ((file, {}), (tmp_path / "missing", {}), (None, {"LORA_FT_API_KEY": " "})):
        with pytest.raises(UsageError):
            ApiKeys.read(broken, environment)


def test_a_request_has_an_id_and_one_log_line_without_its_text(server: Running) -> None:
    body = {"model": "echo", "prompt": "secret words", "user": "u1"}
    response = httpx.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    line = server.line_of(response)
    assert line | {"time": "", "seconds": 0, "first_token_seconds": 0} == {
        "time": "",
        "event": "request",
        "request_id": "abc-1",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "echo",
        "stream": False,
        "rows": 1,
        "prompt_tokens": 14,
        "completion_tokens": 13,
        "first_token_seconds": 0,
        "seconds": 0,
        "finish": {"stop": 1},
        "user": "u1",
    }
    assert "secret" not in server.log.getvalue()
    assert "terces" not in server.log.getvalue()
    assert len([line for line in server.lines() if line.get("request_id") == "abc-1"]) == 1


def test_an_id_that_could_break_a_log_is_replaced(server: Running) -> None:
    for sent in ("a b", "x" * 129, "a\tb"):
        response = server.get("/v1/models", headers={"X-Request-Id": sent})
        assert response.headers["x-request-id"].startswith("req-")


def test_texts_are_logged_where_that_is_asked_for(engine: FakeEngine) -> None:
    with serving({"echo": engine}, texts=True) as running:
        line = running.line_of(running.post("/v1/generate", model="echo", rows=[{"text": "ab"}]))
        assert (line["prompts"], line["answers"]) == ([{"text": "ab"}], ["ba :yas"])


def test_metrics_count_requests_tokens_and_the_engine(server: Running) -> None:
    server.line_of(server.post("/v1/completions", model="echo", prompt="abc"))
    server.line_of(server.post("/v1/completions", model="echo", prompt="abc", stream=True))
    server.line_of(server.post("/v1/completions", model="invented", prompt="abc"))
    text = server.get("/metrics").text
    for sample in (
        'lora_ft_requests_total{endpoint="/v1/completions",model="echo",status="200"} 2.0',
        'lora_ft_requests_total{endpoint="/v1/completions",model="",status="404"} 1.0',
        'lora_ft_prompt_tokens_total{model="echo"} 10.0',
        'lora_ft_generated_tokens_total{model="echo"} 8.0',
        'lora_ft_time_to_first_token_seconds_count{model="echo"} 2.0',
        'lora_ft_time_per_token_seconds_count{model="echo"} 2.0',
        'lora_ft_request_seconds_count{model="echo"} 2.0',
        'lora_ft_queued_requests{bundle="echo"} 3.0',
        'lora_ft_running_rows{bundle="echo"} 0.0',
        'lora_ft_cache_pool_limit_bytes{bundle="echo"} 100.0',
        'lora_ft_decoder_steps_total{bundle="echo"} 7.0',
        'lora_ft_adapter_loads_total{bundle="echo"} 1.0',
    ):
        assert sample in text.splitlines()
    assert "invented" not in text


def test_health_checks_are_not_logged(server: Running) -> None:
    assert server.get("/health/live").json() == {"status": "live", "failed": []}
    assert server.get("/health/ready").json() == {"status": "ready"}
    server.line_of(server.get("/v1/models"))
    assert [line["path"] for line in server.lines()] == ["/v1/models"]


def test_a_failed_engine_is_neither_live_nor_ready(server: Running, engine: FakeEngine) -> None:
    engine.failed = RuntimeError("broken")
    assert server.get("/health/live").status_code == 503
    assert server.get("/health/ready").status_code == 503


def test_a_full_queue_is_429_and_starts_nothing(server: Running, engine: FakeEngine) -> None:
    engine.capacity = 2
    response = server.post("/v1/completions", model="echo", prompt=["a", "b", "c"])
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["code"] == "queue_full"
    assert not engine.running
    with pytest.raises(openai.RateLimitError):
        server.client().completions.create(model="echo", prompt=["a", "b", "c"])
    assert server.post("/v1/completions", model="echo", prompt=["a", "b"]).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(server: Running, engine: FakeEngine, stream: bool) -> None:
    engine.paused = True
    body = {"model": "echo", "rows": ["a", "b"], "stream": stream}

    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            task = asyncio.create_task(client.post(f"{server.url}/v1/generate", json=body))
            while len(engine.running) < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    wait_for(lambda: not engine.running)
    (line,) = wait_for(server.lines)
    assert (line["status"], line["error"]) == (499, "client_gone")


def test_an_unexpected_error_is_a_500_without_its_text(server: Running, engine: FakeEngine) -> None:
    engine.unexpected = ValueError("quotes the secret prompt")
    response = server.post("/v1/completions", model="echo", prompt="secret")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert server.line_of(response)["error"] == "internal_error"
    assert "secret" not in server.log.getvalue()
    assert any(line["event"] == "failure" and line["error"] == "ValueError" for line in server.lines())


def test_an_unexpected_error_is_the_last_event_of_a_stream(server: Running, engine: FakeEngine) -> None:
    async def fail() -> httpx.Response:
        engine.paused = True
        async with httpx.AsyncClient() as client:
            task = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=BODY | {"stream": True}))
            while not engine.running:
                await asyncio.sleep(0.005)
            next(iter(engine.running)).error = ValueError("secret text")
            return await task

    response = asyncio.run(fail())
    assert json.loads(response.text.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert server.line_of(response)["status"] == 500
    assert "secret" not in response.text + server.log.getvalue()


def test_a_drain_refuses_newcomers_and_finishes_the_others(server: Running, engine: FakeEngine) -> None:
    async def drain() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        engine.paused = True
        async with httpx.AsyncClient() as client:
            body = {"model": "echo", "prompt": "abc"}
            first = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
            while not engine.running:
                await asyncio.sleep(0.005)
            server.service.drain.closing = True
            newcomer = await client.post(f"{server.url}/v1/completions", json=body)
            ready = await client.get(f"{server.url}/health/ready")
            engine.paused = False
            return await first, newcomer, ready

    finished, newcomer, ready = asyncio.run(drain())
    assert finished.json()["choices"][0]["text"] == "cba"
    assert (newcomer.status_code, newcomer.json()["error"]["code"]) == (503, "shutting_down")
    assert newcomer.headers["retry-after"] == "1"
    assert ready.status_code == 503


CLOSED = "the model was closed before the answer was complete"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_stops_fails_the_request(server: Running, engine: FakeEngine, stream: bool) -> None:
    async def stop() -> httpx.Response:
        engine.paused = True
        async with httpx.AsyncClient() as client:
            body = {"model": "echo", "prompt": "abc", "stream": stream}
            task = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
            while not engine.running:
                await asyncio.sleep(0.005)
            await engine.close()
            return await task

    response = asyncio.run(stop())
    error = json.loads(response.text.removeprefix("data: "))["error"]
    assert error["code"] == "model_failed"
    line = server.line_of(response)
    assert (line["status"], line["error"], line["reason"]) == (503, "model_failed", CLOSED)
    assert CLOSED not in response.text


def test_unknown_paths_and_methods_are_openai_errors(server: Running) -> None:
    for response, status in (
        (server.get("/v1/embeddings"), 404),
        (server.get("/v1/completions"), 405),
        (server.post("/health/live"), 405),
        (server.get("/v1/models/"), 404),
    ):
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert response.headers["x-request-id"]


def test_others_do_not_wait_for_a_long_prompt(server: Running) -> None:
    """A text of more characters than the limit has tokens is counted in another thread."""
    response = server.post("/v1/generate", model="echo", rows="a b " * 20_000)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "rows")


def test_a_stream_that_waits_sends_comments(
    server: Running, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream, "quiet_seconds", 0.02)
    engine.paused = True
    with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY | {"stream": True}) as response:
        received = b""
        for data in response.iter_raw():
            received += data
            if received.count(b": waiting\n\n") >= 2:
                engine.paused = False
    assert received.endswith(b"data: [DONE]\n\n")
    engine.paused = True
    stream = server.client().completions.create(**BODY, stream=True)
    timer = threading.Timer(0.1, lambda: setattr(engine, "paused", False))
    timer.start()
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == "cba"


def test_an_engine_that_has_failed_is_503(server: Running, engine: FakeEngine) -> None:
    engine.unexpected = LoraFtError("the engine has failed")
    response = server.post("/v1/completions", **BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")


def test_an_adapter_that_cannot_be_read_is_503_and_is_not_listed(tmp_path: Path) -> None:
    bank = FakeEngine(tmp_path / "bank", adapters={"one": "{text}", "two": "{text}"})
    settings_of = bank.generator.of

    def damaged(adapter: str | None) -> Any:
        if adapter == "two":
            raise BundleError("the file of the adapter is gone")
        return settings_of(adapter)

    bank.generator.of = damaged
    with serving({"bank": bank}) as running:
        assert [model["id"] for model in running.get("/v1/models").json()["data"]] == ["bank", "one"]
        response = running.post("/v1/completions", model="two", prompt="a")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
        assert running.line_of(response)["reason"] == "the file of the adapter is gone"


def test_an_adapter_that_was_just_removed_is_404(tmp_path: Path) -> None:
    bank = FakeEngine(tmp_path / "bank", adapters={"one": "{text}"})
    with serving({"bank": bank}) as running:
        bank.set_adapters({})  # the names are not read again yet
        response = running.post("/v1/completions", model="one", prompt="a")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
