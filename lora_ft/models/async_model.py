"""A bundle or bank for asyncio: many callers at once, batched token by token.

    model = lora_ft.AsyncModel.load("bundles/demo")
    print(await model.generate({"text": "..."}))
    async for piece in model.stream({"text": "..."}):
        print(piece, end="")

One thread runs the model (`lora_ft.export.runtime.engine`); here its events become texts in the caller's event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.core.memory import allowed_memory
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.labels import label_tokens
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.engine import MAX_QUEUE, Engine, Statistics
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.job import Event, Failed, Finished, Job
from lora_ft.export.runtime.scheduler import MAX_ROWS, Limits
from lora_ft.models.backends import Answer
from lora_ft.models.delta import Delta, GrowingAnswer
from lora_ft.models.loading import bundle_model
from lora_ft.models.model import Input, Model, listed_rows

_INTERVAL = 0.02  # seconds between two pieces of an answer; a reader sees no difference
_POOL = 2**31  # default limit of the cache pool, in bytes, or a quarter of the memory if that is less


class AsyncModel:
    """A bundle or bank that answers many callers at once. Safe from any task, event loop and thread.

    Where rows are independent (`Precision.independent`: fp32 and int8 on processors), a request's answers without an
    adapter equal those of `Model.generate` for its row alone, whatever else is running. Elsewhere they may differ in
    near-ties.

    Attributes:
        model: The bundle's prompt, options and adapters.
        generator: The bundle's runtime.
        name: Name of the bundle's folder.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_rows: int | None = None,
        memory: int | None = None,
        max_queue: int | None = None,
    ) -> None:
        self.generator, self.name = generator, generator.folder.resolve().name
        self.model: Model = bundle_model(self.name, generator)
        limits = Limits(
            MAX_ROWS if max_rows is None else max_rows,
            min(_POOL, allowed_memory() // 4) if memory is None else memory,
        )
        self._generations: dict[Job, Generation] = {}
        self._undelivered: list[tuple[Generation, Event]] = []
        self._due = 0.0  # time from which tokens are handed over again
        self._engine = Engine(self.generator, self._deliver, limits, MAX_QUEUE if max_queue is None else max_queue)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        provider: str = "auto",
        threads: int | None = None,
        max_rows: int | None = None,
        memory: int | None = None,
        max_queue: int | None = None,
    ) -> AsyncModel:
        """Load a bundle or a bank.

        Args:
            folder: Folder of the bundle.
            provider, threads: See `Generator.load`.
            max_rows: Rows that run together. Default: 32.
            memory: Maximum memory of the cache pool, in bytes. Default: 2 GiB, or a quarter of the memory if less.
            max_queue: Requests that may wait. Default: 256.

        Raises:
            UsageError, LoraFtError: The bundle is missing or damaged, or a limit is out of range.
        """
        generator = Generator.load(os.fspath(folder), provider=provider, threads=threads)
        return cls(generator, max_rows=max_rows, memory=memory, max_queue=max_queue)

    @property
    def adapters(self) -> list[str]:
        """Names of a bank's adapters; none for other bundles."""
        return self.generator.adapters

    @property
    def failed(self) -> Exception | None:
        """Error that ended the engine, or None while it works."""
        return self._engine.failure

    async def generate(
        self, rows: Input | Iterable[Input], *, raw: bool = False, adapter: str | None = None, **options: Any
    ) -> list[str]:
        """Return one answer for each row; arguments and errors as for `start`."""
        return [answer.text for answer in await self.answers(rows, raw=raw, adapter=adapter, **options)]

    async def answers(
        self, rows: Input | Iterable[Input], *, raw: bool = False, adapter: str | None = None, **options: Any
    ) -> list[Answer]:
        """Return the answers of `generate` with their numbers of tokens and what was cut.

        Raises:
            QueueFullError: More rows wait than the queue holds. No row is answered then.
        """
        generations = []
        try:
            for row in listed_rows(rows):
                generations.append(self.start(row, raw=raw, adapter=adapter, **options))
            return [answer for generation in generations for answer in await generation.answers()]
        finally:
            for generation in generations:
                generation.cancel()

    async def stream(
        self, row: Input, *, raw: bool = False, adapter: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
        """Yield the answer to one row piece by piece; arguments and errors as for `start`.

        Beams and the codec `json` come as one piece at the end.
        """
        async for delta in (generation := self.start(row, raw=raw, adapter=adapter, **options)):
            try:
                if delta.text and delta.answer == 0:
                    yield delta.text
            except GeneratorExit:
                generation.cancel()
                raise

    def start(self, row: Input, *, raw: bool = False, adapter: str | None = None, **options: Any) -> Generation:
        """Queue one row, and return its answers to come.

        Args:
            row: Text or row for the prompt of the task, as for `Model.generate`. A row of a bank may name its adapter.
            raw: Treat the text as a finished prompt.
            adapter: Adapter of a bank. Default: the one that the row names, else the base.
            options: Generation options by transformers' names, and `labels`. They take precedence over the task's.

        Raises:
            UsageError: The row does not fit the prompt, an option is out of range, there is no such adapter, or the
                request exceeds the limits.
            QueueFullError: Too many requests wait.
            RuntimeError: No event loop is running.
        """
        loop = asyncio.get_running_loop()
        name, prompt, settings = self._prompted(row, raw, adapter)
        if labels := options.pop("labels", None):
            options["allowed"] = label_tokens(labels, settings.tokenizer)
        return self._begin(loop, self._engine.prepare(prompt, options, name), settings.tokenizer)

    def _begin(self, loop: asyncio.AbstractEventLoop, job: Job, tokenizer: Tokenizer) -> Generation:
        generation = Generation(self, loop, job, tokenizer)
        self._generations[job] = generation  # before the engine may answer
        try:
            self._engine.submit(job)
        except BaseException:
            del self._generations[job]
            raise
        return generation

    async def label_scores(
        self, row: Input, *, raw: bool = False, adapter: str | None = None, labels: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return the probability of each label, relative to the other labels.

        Args:
            row, raw, adapter: See `start`.
            labels: Labels to compare. Default: those of the task.

        Raises:
            UsageError: There are no labels, or as for `start`.
        """
        name, prompt, settings = self._prompted(row, raw, adapter)
        labels = list(dict.fromkeys(labels or settings.labels))
        if not labels:
            raise UsageError(f"{name or self.name} has no labels", "pass labels, or ask for an answer instead")
        options = {"allowed": label_tokens(labels, settings.tokenizer)}
        job = self._engine.prepare(prompt, options, name, label_scores=True)
        scores = np.zeros(len(labels))
        async for delta in self._begin(asyncio.get_running_loop(), job, settings.tokenizer):
            if delta.scores is not None:
                scores[delta.answer] = delta.scores[0]
        shares = np.exp(scores - scores.max())
        return dict(zip(labels, (shares / shares.sum()).tolist(), strict=True))

    def reload(self) -> list[str]:
        """Read a bank's manifest again, and return the names of its adapters.

        Rows that are running keep the adapter that they began with.

        Raises:
            UsageError, LoraFtError: The manifest is damaged, or the graphs have changed. The adapters stay as before.
        """
        self._engine.reload()
        return self.adapters

    def statistics(self) -> Statistics:
        """Return the engine's state and totals."""
        return self._engine.statistics()

    async def close(self, grace: float = 0.0) -> None:
        """Refuse further requests, wait at most `grace` seconds for the running ones, and cancel what is left."""
        await asyncio.to_thread(self._engine.close, grace)

    def _prompted(self, row: Input, raw: bool, adapter: str | None) -> tuple[str | None, str, Any]:
        """Return adapter, finished prompt and task settings of a row."""
        rows = listed_rows([row])
        if adapter is None and not self.model.adapter:
            adapter = next(iter(self.model.adapters_of(rows)), None)
        model = self.model if adapter is None else self.model.with_adapter(adapter)
        (prompt,) = model.prompts(rows, raw=raw)
        return model.adapter, prompt, self.generator.of(model.adapter)

    def cancel(self, job: Job) -> None:
        """Drop a request; see `Generation.cancel`."""
        self._engine.cancel(job)
        self._generations.pop(job, None)

    def _deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """Hand events to the event loops that wait for them, each loop once.

        Waking a loop and sending a piece take about 0.2 ms of a core that the model needs, a tenth of a step. So only
        the first token and the end of an answer are handed over at once, and others at most every `_INTERVAL` seconds.
        """
        urgent = False
        for job, event in events:
            generation = self._generations.get(job)
            if generation is not None:
                self._undelivered.append((generation, event))
                urgent |= not (isinstance(event, TokenChunk) and generation.begun)
                generation.begun = True
                if isinstance(event, Finished | Failed):
                    self._generations.pop(job, None)
        now = time.monotonic()
        if not urgent and now < self._due:
            return
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Event]]] = {}
        for generation, event in self._undelivered:
            by_loop.setdefault(generation.loop, []).append((generation, event))
        self._undelivered, self._due = [], now + _INTERVAL
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, pairs)
            except RuntimeError:  # the loop is closed, so nobody waits
                for generation, _ in pairs:
                    generation.cancel()


def _receive(events: Sequence[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.receive(event)


class Generation:
    """The answers to one row, as an asynchronous iterator of `Delta`. It ends when all answers are complete.

    Attributes:
        loop: Event loop of the caller.
        prompt_tokens: Tokens of the prompt.
        source_cut: True if the prompt was longer than the source length and was cut.
        begun: True once a token has come.
    """

    def __init__(self, owner: AsyncModel, loop: asyncio.AbstractEventLoop, job: Job, tokenizer: Tokenizer) -> None:
        self._owner, self.loop, self._job, self._tokenizer = owner, loop, job, tokenizer
        self.prompt_tokens, self.source_cut = len(job.prompted.ids), job.prompted.source_cut
        self._ends = owner.generator.special.ends
        self._deltas: deque[Delta] = deque()
        self._arrived = asyncio.Event()
        self._texts: dict[int, GrowingAnswer] = {}
        self._error: Exception | None = None
        self.begun = self._ended = False

    def receive(self, event: Event) -> None:
        """Take an event, in the caller's loop."""
        if isinstance(event, TokenChunk):
            if event.answer not in self._texts:
                self._texts[event.answer] = GrowingAnswer(event.answer, self._tokenizer, self._ends)
            delta = self._texts[event.answer].add(event)
            if self._deltas and self._deltas[-1].answer == delta.answer:
                self._deltas[-1] += delta
            else:
                self._deltas.append(delta)
        elif isinstance(event, Finished):
            self._deltas.extend(text.end() for text in self._texts.values() if text.finish is None)
            self._ended = True
        else:
            self._error, self._ended = event.error, True
        self._arrived.set()

    def cancel(self) -> None:
        """Free the rows of the request within a step; one that has ended is left as it is."""
        if not self._ended:
            self._ended = True
            self._owner.cancel(self._job)
            self._arrived.set()

    async def answers(self) -> list[Answer]:
        """Wait for the end, and return the answers."""
        async for _ in self:
            pass
        return [
            Answer(text.whole, len(text.tokens), text.finish == "length", self.source_cut)
            for _, text in sorted(self._texts.items())
        ]

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            while not self._deltas:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    raise StopAsyncIteration
                self._arrived.clear()
                await self._arrived.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._deltas.popleft()
