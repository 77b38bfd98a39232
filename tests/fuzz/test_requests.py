"""Damaged requests to a server on a real bundle: an answer, or a 4xx in OpenAI's form; never a 500, never a stall."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given

from lora_ft.models.async_model import AsyncModel
from lora_ft.serving.limits import Limits
from tests.export.oracle import make_bundle
from tests.fuzz.limits import LONGEST_MESSAGE, fuzz, seeds
from tests.fuzz.mutations import damaged_bytes, damaged_json, json_bytes
from tests.lora_ft.serving.conftest import Running, serving
from tests.tiny import save_tiny_t5

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "n": 2, "stop": ["a", "."], "max_tokens": 9, "user": "u"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"model": "talk", "prompt": ["one", "two"], **SAMPLING},
        {
            "model": "kinds",
            "prompt": "say: a",
            "logprobs": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ],
    "/v1/chat/completions": [
        {
            "model": "talk",
            "messages": [{"role": "user", "name": "A", "content": "x"}, {"role": "assistant", "content": "B: y"}],
            "logprobs": True,
            "top_logprobs": 1,
        },
        {"model": "talk", "messages": [{"role": "user", "content": [{"type": "text", "text": "A: b"}]}], **SAMPLING},
    ],
    "/v1/generate": [
        {"model": "kinds", "rows": [{"text": "a"}, {"text": "b"}], "label_scores": True},
        {"model": "talk", "rows": ["A: b"], "num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
        {"model": "talk", "rows": ["A: b"], "raw": True, "bad_words_ids": [[4], [5, 6]], "suppress_tokens": [7]},
        {"model": "talk", "rows": "A: b", "stream": True, "output_scores": True, "forced_eos_token_id": [1]},
    ],
}
JSON = {"Content-Type": "application/json"}
PROBE = {"model": "talk", "prompt": "a probe"}


@dataclass
class Target:
    """The server, and its answer to the probe."""

    server: Running
    client: httpx.Client
    expected: str

    def answers(self) -> bool:
        reply = self.client.post("/v1/completions", json=PROBE).json()
        return bool(reply["choices"][0]["text"] == self.expected)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("served")
    checkpoint = save_tiny_t5(root / "tiny")
    make_bundle(checkpoint, root / "kinds", labels=("yes", "no"))
    make_bundle(checkpoint, root / "talk", template="{context}", chat={"context": 5, "characters": 100})
    engines: dict[str, Any] = {name: AsyncModel.load(root / name, threads=1) for name in ("kinds", "talk")}
    with (
        serving(engines, Limits(seconds=60, new_tokens=64)) as server,
        httpx.Client(base_url=server.url, timeout=90) as client,
    ):
        text = client.post("/v1/completions", json=PROBE).json()["choices"][0]["text"]
        yield Target(server, client, text)
    for engine in engines.values():
        asyncio.run(engine.close())


@fuzz
@given(seed=seeds)
def test_damaged_bodies(seed: int, target: Target) -> None:
    random = Random(seed)
    path = random.choice(list(BODIES))
    body = random.choice(BODIES[path])
    content = (
        json_bytes(damaged_json(random, body)) if random.random() < 0.7 else damaged_bytes(random, json_bytes(body))
    )
    response = target.client.post(path, content=content, headers=JSON)
    assert response.status_code == 200 or 400 <= response.status_code < 500, (response.status_code, content[:2000])
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 0 < len(error["message"]) <= LONGEST_MESSAGE
        assert error["type"] == "invalid_request_error"
    elif "event-stream" in response.headers["content-type"]:
        assert response.text.endswith("data: [DONE]\n\n"), response.text[-500:]
    if seed % 16 == 0:
        assert target.answers()


def test_nothing_is_left_of_them(target: Target) -> None:
    assert target.answers()
    for engine in target.server.service.registry.engines.values():
        assert engine.failed is None
        assert engine.statistics().running_rows == engine.statistics().queued == 0
