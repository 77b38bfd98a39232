"""A bundle in the process of the load generator: the same requests without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lora_ft.bench.completions import Reply, Request
from lora_ft.models.async_model import AsyncModel


@dataclass
class Outcome:
    """The pieces of an answer.

    Attributes:
        pieces: Time and text of each piece that has text.
        tokens: Number of tokens.
        end: Time of the end.
    """

    pieces: list[tuple[float, str]] = field(default_factory=list)
    tokens: int = 0
    end: float = 0.0


class EngineTarget:
    """Implementation of `lora_ft.bench.load_generator.Target` on `AsyncModel`.

    Args:
        folder: Bundle or bank.
        threads: Threads per call. Default: all cores.
        max_rows: Rows that run together, or None for the default.
    """

    def __init__(self, folder: Path, threads: int | None, max_rows: int | None) -> None:
        self._model = AsyncModel.load(folder, threads=threads, max_rows=max_rows)
        self._requests: list[Request] = []

    async def models(self) -> list[str]:
        """Return the name of the bundle and those of its adapters."""
        return [self._model.name, *self._model.adapters]

    def prepare(self, requests: Sequence[Request]) -> None:
        """Keep the requests."""
        self._requests = list(requests)

    async def ask(self, number: int) -> Outcome:
        """Generate the answer."""
        request, loop, outcome = self._requests[number], asyncio.get_running_loop(), Outcome()
        limit = {"max_new_tokens": request.max_tokens} if request.max_tokens else {}
        adapter = request.model if request.model in self._model.adapters else None
        async for delta in self._model.start(request.prompt, raw=True, adapter=adapter, do_sample=False, **limit):
            outcome.tokens += len(delta.tokens)
            if delta.text:
                outcome.pieces.append((loop.time(), delta.text))
        outcome.end = loop.time()
        return outcome

    def reply(self, outcome: Outcome, due: float, sent: float) -> Reply:
        """Return the answer as a reply with status 200."""
        times = [time for time, _ in outcome.pieces] or [outcome.end]
        text = "".join(text for _, text in outcome.pieces)
        return Reply(200, times[0] - due, times[-1] - due, outcome.end - due, outcome.tokens, text, sent - due)

    def figures(self) -> dict[str, float]:
        """Return the totals of the engine."""
        return asdict(self._model.statistics().counters)
