"""A server in a thread of this process, over engines without a model."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from lora_ft.serving.app import Service, application
from lora_ft.serving.http_protocol import protocol_of
from lora_ft.serving.keys import ApiKeys
from lora_ft.serving.limits import Limits
from lora_ft.serving.listener import listen
from lora_ft.serving.registry import Registry
from lora_ft.serving.request_log import RequestLog
from tests.lora_ft.serving.fake_engine import FakeEngine


@dataclass
class Running:
    """A server at work.

    Attributes:
        url: Its address.
        service: Its models and settings.
        log: Its log lines.
    """

    url: str
    service: Service
    log: io.StringIO = field(default_factory=io.StringIO)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=30)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30, **more)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == "request"]

    def line_of(self, response: httpx.Response) -> dict[str, Any]:
        """The log line of a request, which is written after its answer."""
        identity = response.headers["x-request-id"]
        return wait_for(lambda: next((line for line in self.requests() if line["request_id"] == identity), None))


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Return the first true result."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)
    return result


@contextlib.contextmanager
def serving(
    engines: dict[str, FakeEngine], limits: Limits | None = None, keys: list[str] | None = None, texts: bool = False
) -> Iterator[Running]:
    log = io.StringIO()
    service = Service(Registry(engines), limits or Limits(), ApiKeys(keys or []), RequestLog(texts=texts, stream=log))
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        application(service),
        loop="asyncio",
        http=protocol_of(service.limits),
        log_config=None,
        log_level="critical",
        ws="none",
        h11_max_incomplete_event_size=service.limits.header_bytes,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    port = listener.getsockname()[1]
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Running(f"http://127.0.0.1:{port}", service, log)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "echo")


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[Running]:
    with serving({"echo": engine}) as running:
        yield running
