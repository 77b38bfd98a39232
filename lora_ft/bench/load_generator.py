"""The process that sends requests. It reads calls as lines of JSON from stdin and writes each reply to stdout.

    python -P load_generator.py

It has its own process, so that its work can be told apart from that of the server and of the report. `server` are
requests over HTTP; `engine` answers them in this process, without HTTP, to measure what HTTP costs.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

from lora_ft.bench.completions import Reply, Request, body_of, read_reply
from lora_ft.bench.http_client import HttpClient, Response
from lora_ft.core.errors import LoraFtError

_RETRY = 0.2  # seconds between attempts to reach a server that starts
_COMPLETIONS = "/v1/completions"


class Target(Protocol):
    """A place that answers requests."""

    async def models(self) -> list[str]:
        """Return the names of the models."""

    def prepare(self, requests: Sequence[Request]) -> None:
        """Take the requests that `ask` refers to by number."""

    async def ask(self, number: int) -> Any:
        """Send a request and return what `reply` reads."""

    def reply(self, outcome: Any, due: float, sent: float) -> Reply:
        """Return the reply; called after the measurement."""

    def figures(self) -> dict[str, float]:
        """Return totals of the engine, if they are known."""


class Server:
    """A server that speaks OpenAI's completions.

    Args:
        url: Address.
        key: API key, or "".
        stream: Ask for streams.
    """

    def __init__(self, url: str, key: str, *, stream: bool) -> None:
        self._client, self._stream = HttpClient(url, key), stream
        self._messages: list[bytes] = []

    async def models(self) -> list[str]:
        """Return the names that GET /v1/models lists."""
        response = await self._client.send(self._client.message("GET", "/v1/models"))
        try:
            return [str(model["id"]) for model in json.loads(response.body)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            remedy = "check the server's log" if response.status >= 500 else "name them with --model"
            raise LoraFtError(f"GET /v1/models does not list models (status {response.status})", remedy) from error

    def prepare(self, requests: Sequence[Request]) -> None:
        """Write the bytes of all requests."""
        self._messages = [
            self._client.message("POST", _COMPLETIONS, body_of(request, stream=self._stream)) for request in requests
        ]

    async def ask(self, number: int) -> Response:
        """Send a request."""
        return await self._client.send(self._messages[number])

    def reply(self, outcome: Response, due: float, sent: float) -> Reply:
        """Read a response."""
        return read_reply(outcome, due, sent)

    def figures(self) -> dict[str, float]:
        """Return nothing: the engine is in another process."""
        return {}


class Calls:
    """The calls that the process answers, one method for each."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._limit = 0.0

    async def server(self, url: str, key: str, stream: bool, limit: float) -> dict[str, Any]:
        """Aim at a server; a request may take `limit` seconds."""
        self._target, self._limit = Server(url, key, stream=stream), limit
        return {}

    async def engine(self, folder: str, threads: int | None, max_rows: int | None, limit: float) -> dict[str, Any]:
        """Load a bundle or a bank in this process and aim at it."""
        from lora_ft.bench.engine_target import EngineTarget

        self._target, self._limit = EngineTarget(Path(folder), threads, max_rows), limit
        return {}

    async def models(self, patience: float) -> dict[str, Any]:
        """Return the names of the models; wait `patience` seconds for a server that starts."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return {"models": await self._aim.models()}
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LoraFtError(f"the server cannot be reached ({error})", "check its address") from error
            await asyncio.sleep(_RETRY)

    async def prepare(self, requests: list[list[Any]], patience: float) -> dict[str, Any]:
        """Take the requests, and wait until the server answers the first one."""
        self._aim.prepare([Request(*request) for request in requests])
        deadline = time.monotonic() + patience
        while True:
            (reply,) = await offer(self._aim, [0.0], [0], self._limit)
            if reply.status == 200:
                return {}
            if 400 <= reply.status < 500 and reply.status != 429:
                raise LoraFtError(f"the server refused a request (status {reply.status}): {reply.text}")
            if time.monotonic() > deadline:
                raise LoraFtError(f"the server does not answer (status {reply.status}): {reply.text}")
            await asyncio.sleep(_RETRY)

    async def offer(
        self, times: list[float], numbers: list[int], limits: list[float] | None = None, misses: int | None = None
    ) -> dict[str, Any]:
        """Offer a load; return the replies, the CPU time of this process, and totals of the engine."""
        before, busy, began = self._aim.figures(), time.process_time(), time.perf_counter()
        replies = await offer(self._aim, times, numbers, self._limit, limits, misses)
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
        engine = {name: value - before[name] for name, value in self._aim.figures().items()}
        return {"replies": [astuple(reply) for reply in replies], "seconds": seconds, "cpu": cpu, "engine": engine}

    async def alone(self, numbers: list[int]) -> dict[str, Any]:
        """Return the replies to requests that are sent one after another."""
        replies = [(await offer(self._aim, [0.0], [number], self._limit))[0] for number in numbers]
        return {"replies": [astuple(reply) for reply in replies]}

    @property
    def _aim(self) -> Target:
        if self._target is None:
            raise LoraFtError("there is no target", "call `server` or `engine` first")
        return self._target


async def offer(
    target: Target,
    times: Sequence[float],
    numbers: Sequence[int],
    limit: float,
    limits: Sequence[float] | None = None,
    misses: int | None = None,
) -> list[Reply]:
    """Send requests at their times, whether or not earlier ones are answered, and return the replies in order.

    Latency counts from the time at which a request was due. Otherwise a client that is slowed down by a busy machine
    would hide the waiting that it causes. If too many requests miss their limit, no further ones are sent, and there
    are replies to those that were sent only.

    Args:
        target: Place to send them to.
        times: Times from now, in seconds.
        numbers: Numbers of prepared requests.
        limit: Time that a request may take, in seconds.
        limits: Time within which each request should end, in seconds.
        misses: Number of requests that may miss that. Default: all.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    sent = [0.0] * len(times)
    deadlines = [began + due + within for due, within in zip(times, limits or [math.inf] * len(times), strict=True)]
    pending: set[int] = set()
    missed = 0  # of the answered requests

    async def ask(i: int) -> Any:
        nonlocal missed
        sent[i] = loop.time()
        pending.add(i)
        try:
            async with asyncio.timeout_at(began + times[i] + limit):
                outcome = await target.ask(numbers[i])
            missed += loop.time() > deadlines[i]
        except (OSError, LoraFtError, TimeoutError) as error:
            missed += 1
            outcome = loop.time(), f"{type(error).__name__}: {error}"
        pending.remove(i)
        return outcome

    tasks = []
    for i, due in enumerate(times):
        if (wait := began + due - loop.time()) > 0:
            await asyncio.sleep(wait)
        if misses is not None and missed + sum(loop.time() > deadlines[j] for j in pending) > misses:
            break
        tasks.append(asyncio.create_task(ask(i)))
    outcomes = await asyncio.gather(*tasks)
    replies = []
    for due, at, outcome in zip(times, sent, outcomes, strict=False):
        if isinstance(outcome, tuple):
            end = outcome[0] - began - due
            replies.append(Reply(0, end, end, end, 0, outcome[1], at - began - due))
        else:
            replies.append(target.reply(outcome, began + due, at))
    return replies


def main() -> None:
    """Answer calls until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # other output must not mix with replies
    calls = Calls()
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply = runner.run(getattr(calls, request.pop("call"))(**request))
            except Exception as error:
                reply = {"error": str(error) if isinstance(error, LoraFtError) else f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
