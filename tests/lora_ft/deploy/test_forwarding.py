"""A gateway passes requests on as they are, and sends those of a dead replica to another one, once."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lora_ft.core.errors import QueueFullError
from lora_ft.deploy.forwarded_request import ForwardedRequest, Head, Part, answer_parts
from lora_ft.deploy.gateway import forwarded
from lora_ft.deploy.retried_answer import Ask, ReplicaDied, retried
from lora_ft.serving.answers import queue_full
from lora_ft.serving.app import Service, application
from lora_ft.serving.limits import Limits
from lora_ft.serving.registry import Registry
from lora_ft.serving.request_log import RequestLog
from tests.lora_ft.serving.fake_engine import FakeEngine

LOG = RequestLog(stream=io.StringIO())
GENERATE = {"model": "echo", "rows": ["hello"]}


class Replicas:
    """Replicas that answer with the application, in turn.

    Args:
        engine: Engine of all of them.
        deaths: Parts after which each replica dies; None for one that lives. The last one is used again.
    """

    def __init__(self, engine: FakeEngine, deaths: Sequence[int | None] = (None,)) -> None:
        self.app = application(Service(Registry({"echo": engine})))  # type: ignore[dict-item]
        self.requests: list[ForwardedRequest] = []
        self._deaths = list(deaths)

    async def ask(self, request: ForwardedRequest) -> AsyncGenerator[Part, None]:
        death = self._deaths[min(len(self.requests), len(self._deaths) - 1)]
        self.requests.append(request)
        number = 0
        async with contextlib.aclosing(answer_parts(self.app, request)) as parts:
            async for part in parts:
                if number == death:
                    raise ReplicaDied("killed")
                yield part
                number += 1


def gateway(ask: Ask, limits: Limits | None = None) -> httpx.AsyncClient:
    """Return a client of a gateway."""

    async def answer(request: Request) -> Response:
        return await forwarded(ask, request, limits or Limits(), LOG)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


def direct(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


def request_of(path: str, **body: Any) -> ForwardedRequest:
    headers = ((b"content-type", b"application/json"), (b"x-request-id", b"one"))
    return ForwardedRequest("POST", path, b"", headers, json.dumps(body).encode())


async def texts(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """Return the values of a stream's events."""
    answer = await client.post("/v1/generate", json={**GENERATE, "stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "echo")


def stable(answer: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    """Return what two answers to one request must share."""
    content = answer.json()
    content.pop("created", None)
    for entry in content.get("data", []):
        entry.pop("created")
    return answer.status_code, content, dict(answer.headers) | {"content-length": ""}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/generate", GENERATE),
        ("POST", "/v1/generate", {**GENERATE, "nonsense": 1}),
        ("POST", "/v1/completions", {"model": "echo", "prompt": "hello", "n": 2}),
        ("POST", "/v1/completions", {"model": "unknown", "prompt": "hello"}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/echo", None),
        ("GET", "/health/ready", None),
        ("GET", "/openapi.json", None),
        ("PUT", "/v1/models", None),
        ("GET", "/nowhere", None),
    ],
)
def test_an_answer_is_the_replicas(engine: FakeEngine, method: str, path: str, body: Any) -> None:
    async def both() -> tuple[Any, Any]:
        replicas = Replicas(engine)
        async with gateway(replicas.ask) as client, direct(replicas.app) as own:
            headers = {"x-request-id": "one"}
            answers = [await c.request(method, path, json=body, headers=headers) for c in (client, own)]
            return stable(answers[0]), stable(answers[1])

    through, own = asyncio.run(both())
    assert through == own


def test_a_client_of_openai_streams_through_a_gateway(engine: FakeEngine) -> None:
    async def streamed() -> str:
        async with gateway(Replicas(engine).ask) as client:
            own = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=client, max_retries=0)
            stream = await own.completions.create(model="echo", prompt="hello", stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    assert asyncio.run(streamed()) == "olleh"


def test_a_replica_that_dies_before_its_answer_is_replaced(engine: FakeEngine) -> None:
    async def answered() -> tuple[httpx.Response, Replicas]:
        replicas = Replicas(engine, [0, None])
        async with gateway(replicas.ask) as client:
            return await client.post("/v1/generate", json=GENERATE), replicas

    answer, replicas = asyncio.run(answered())
    assert answer.status_code == 200
    assert answer.json()["answers"][0]["text"] == "olleh :yas"
    first, second = replicas.requests
    assert first == second  # also its id


@pytest.mark.parametrize("death", range(1, 12))
def test_a_stream_goes_on_where_it_was_interrupted(engine: FakeEngine, death: int) -> None:
    async def both() -> tuple[Any, Any]:
        async with gateway(Replicas(engine, [death, None]).ask) as client, gateway(Replicas(engine).ask) as calm:
            return await texts(client), await texts(calm)

    interrupted, whole = asyncio.run(both())
    assert interrupted == whole


def test_a_stream_is_not_continued_by_another_answer(engine: FakeEngine, tmp_path: Path) -> None:
    other = Replicas(FakeEngine(tmp_path / "echo", template="tell: {text}x"))

    async def streamed() -> list[dict[str, Any]]:
        first = Replicas(engine, [4])

        async def ask(request: ForwardedRequest) -> AsyncGenerator[Part, None]:
            replicas = other if first.requests else first
            async for part in replicas.ask(request):
                yield part

        async with gateway(ask) as client:
            return await texts(client)

    *events, last = asyncio.run(streamed())
    assert "".join(event["text"] for event in events) == "oll"
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "model_failed")


def test_two_deaths_are_an_error(engine: FakeEngine) -> None:
    async def answered() -> tuple[httpx.Response, list[dict[str, Any]], int]:
        replicas = Replicas(engine, [0])
        async with gateway(replicas.ask) as client, gateway(Replicas(engine, [3, 2]).ask) as streaming:
            answer = await client.post("/v1/generate", json=GENERATE)
            return answer, await texts(streaming), len(replicas.requests)

    answer, events, asked = asyncio.run(answered())
    assert (answer.status_code, answer.json()["error"]["code"], asked) == (503, "model_failed", 2)
    assert [event.get("text") for event in events] == ["o", "l", None]
    assert events[-1]["error"]["code"] == "model_failed"


def test_a_full_queue_is_refused_at_once() -> None:
    asked = 0

    async def ask(request: ForwardedRequest) -> AsyncGenerator[Part, None]:
        nonlocal asked
        asked += 1
        raise queue_full(QueueFullError(256, 2.5))
        yield b""

    async def answered() -> httpx.Response:
        async with gateway(ask) as client:
            return await client.post("/v1/generate", json=GENERATE)

    answer = asyncio.run(answered())
    assert (answer.status_code, answer.headers["retry-after"], asked) == (429, "3", 1)
    assert answer.json()["error"]["code"] == "queue_full"


def test_leaving_a_stream_frees_its_rows(engine: FakeEngine) -> None:
    engine.paused = True

    async def left() -> None:
        parts = retried(Replicas(engine).ask, request_of("/v1/generate", stream=True, **GENERATE), LOG)
        assert isinstance(await anext(parts), Head)
        await until(lambda: len(engine.running) == 1)
        await parts.aclose()
        assert not engine.running

    asyncio.run(left())


def test_a_cancelled_request_frees_its_rows(engine: FakeEngine) -> None:
    engine.paused = True

    async def cancelled() -> None:
        async with gateway(Replicas(engine).ask) as client:
            task = asyncio.create_task(client.post("/v1/generate", json=GENERATE))
            await until(lambda: len(engine.running) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: not engine.running)

    asyncio.run(cancelled())


def test_a_large_body_is_refused_and_not_read_to_its_end(engine: FakeEngine) -> None:
    produced = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal produced
        while produced < 1000:
            produced += 1
            yield b"x" * (1 << 16)

    async def answered() -> httpx.Response:
        async with gateway(Replicas(engine).ask) as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/generate", content=endless(), headers=headers)

    answer = asyncio.run(answered())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert produced < 100


def test_a_slow_body_is_refused(engine: FakeEngine) -> None:
    async def slow() -> AsyncGenerator[bytes, None]:
        yield b"{"
        await asyncio.sleep(60)

    async def answered() -> httpx.Response:
        async with gateway(Replicas(engine).ask, Limits(body_seconds=0.05)) as client:
            return await client.post("/v1/generate", content=slow(), headers={"content-type": "application/json"})

    answer = asyncio.run(answered())
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")


def test_without_a_replica_a_request_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.deploy.gateway._SPARE_SECONDS", 0.0)

    async def ask(request: ForwardedRequest) -> AsyncGenerator[Part, None]:
        await asyncio.sleep(60)
        yield b""

    async def answered() -> httpx.Response:
        async with gateway(ask, Limits(seconds=0.05)) as client:
            return await client.post("/v1/generate", json=GENERATE)

    answer = asyncio.run(answered())
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model": 3}', b"\xff", b"[" * 100_000, b'{"model": "%s"}' % (b"x" * 999)]
)
def test_a_body_without_a_model_goes_to_any_replica(body: bytes) -> None:
    assert ForwardedRequest("POST", "/v1/generate", b"", (), body).model == ""


def test_the_model_of_a_request_is_known_to_the_gateway() -> None:
    assert request_of("/v1/generate", model="bank/titles").model == "bank/titles"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
