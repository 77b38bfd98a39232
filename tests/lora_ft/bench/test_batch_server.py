"""The server that batches whole requests: its queue, in virtual time, and its answers over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_ft.bench.batch_server import Answers, Batcher, Waiting, load_bank, serve
from lora_ft.bench.http_client import HttpClient, Response
from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import Generator


def answers(batches: list[list[str]]) -> Any:
    """Return a function that answers prompts in upper case and notes its batches."""

    def answer(batch: Sequence[Waiting]) -> Answers:
        batches.append([waiting.prompt for waiting in batch])
        if "error" in batches[-1]:
            raise LoraFtError("broken")
        return [(waiting.prompt.upper(), waiting.limit) for waiting in batch]

    return answer


def test_waiting_requests_are_answered_together_up_to_the_batch_size() -> None:
    batches: list[list[str]] = []

    async def main() -> list[tuple[str, int]]:
        batcher = Batcher(answers(batches), batch=3, wait=0.0, workers=1)
        return await asyncio.gather(*(batcher.ask(name, "m", 5) for name in "abcde"))

    assert asyncio.run(main()) == [("A", 5), ("B", 5), ("C", 5), ("D", 5), ("E", 5)]
    assert batches == [["a", "b", "c"], ["d", "e"]]


def test_an_error_reaches_the_requests_of_its_batch_only() -> None:
    batches: list[list[str]] = []

    async def main() -> list[Any]:
        batcher = Batcher(answers(batches), batch=2, wait=0.0, workers=1)
        return await asyncio.gather(*(batcher.ask(n, "m", 1) for n in ("a", "error", "b")), return_exceptions=True)

    failed, same, good = asyncio.run(main())
    assert isinstance(failed, LoraFtError) and failed is same
    assert good == ("B", 1)


async def served(answer: Any, models: Sequence[str], messages: Sequence[tuple[str, str, bytes]]) -> list[Response]:
    """Return the responses of a server to (method, path, body)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    task = asyncio.create_task(serve(Batcher(answer, 2, 0.0, 1), models, port))
    client = HttpClient(f"http://127.0.0.1:{port}")
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError):  # until the server listens
                await client.send(client.message("GET", "/v1/models"))
                break
            await asyncio.sleep(0.01)
        return [await client.send(client.message(*message)) for message in messages]
    finally:
        client.close()
        task.cancel()


def test_the_server_speaks_completions_over_one_connection() -> None:
    body = json.dumps({"prompt": "hi", "model": "m", "max_tokens": 4}).encode()
    messages = [
        ("GET", "/v1/models", b""),
        ("POST", "/v1/completions", body),
        ("POST", "/v1/completions", b'{"model": "m"}'),
        ("POST", "/v1/completions", body.replace(b"hi", b"error")),
        ("GET", "/other", b""),
    ]
    models, good, malformed, broken, unknown = asyncio.run(served(answers([]), ["m"], messages))
    assert [model["id"] for model in json.loads(models.body)["data"]] == ["m"]
    content = json.loads(good.body)
    assert (content["choices"][0]["text"], content["usage"]) == ("HI", {"completion_tokens": 4})
    assert (malformed.status, broken.status, unknown.status) == (400, 500, 404)
    assert "broken" in json.loads(broken.body)["error"]["message"]


def test_a_bundle_answers_as_its_generator(published: Path, generator: Generator) -> None:
    answer, models = load_bank(published, 1)
    prompts = ["say: hello", "say: some words, and then some more of them", "x"]
    assert models == [published.name]
    texts = [text for text, _ in answer([_waiting(prompt) for prompt in prompts])]
    assert texts == generator.generate(prompts, max_new_tokens=6)


def _waiting(prompt: str) -> Waiting:
    loop = asyncio.new_event_loop()
    try:
        return Waiting(prompt, "base", 6, loop.create_future())
    finally:
        loop.close()


@pytest.mark.parametrize("limit", [1, 3])
def test_answers_are_cut_at_their_own_limit(published: Path, generator: Generator, limit: int) -> None:
    answer, _ = load_bank(published, 1)
    short, long = _waiting("say: hello"), _waiting("say: hello")
    short.limit = limit
    (text, tokens), (whole, _) = answer([short, long])
    assert tokens <= limit
    assert [text, whole] == [generator.generate("say: hello", max_new_tokens=n)[0] for n in (limit, 6)]
