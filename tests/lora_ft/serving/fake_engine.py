"""An engine without a model: it answers a prompt with its letters in reverse, one token each, when it is let."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.settings import Settings
from lora_ft.models.delta import Delta
from tests.tiny import tiny_tokenizer

SOURCE_LENGTH = 64


class FakeEngine:
    """An engine as `AsyncModel`.

    Attributes:
        paused: True to keep all answers waiting.
        together: True to hand over all tokens of an answer at once, as if the event loop had been busy.
        capacity: Requests that may be at work; more are refused as a full queue.
        unexpected: Exception for every request, or None.
        running: Generations that are neither finished nor cancelled.
    """

    def __init__(
        self,
        folder: Path,
        *,
        template: str | None = "say: {text}",
        labels: tuple[str, ...] = (),
        chat: dict[str, Any] | None = None,
        adapters: Mapping[str, str] | None = None,
        **defaults: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        self.name = folder.name
        self.paused, self.together, self.capacity, self.unexpected = False, False, 100, None
        self.failed: Exception | None = None
        self.running: set[Generation] = set()
        self.reloads = 0
        self._tokenizer, self._labels, self._chat = Tokenizer(folder / "tokenizer.json"), labels, chat
        self._defaults = {"max_new_tokens": 50, **defaults}
        self._templates: dict[str | None, str | None] = {None: template, **(adapters or {})}
        self.generator = SimpleNamespace(
            of=self._settings, manifest={"precision": "fp32"}, bank=adapters is not None or None, folder=folder
        )
        self.model = SimpleNamespace(prompts=self._prompts, with_adapter=lambda name: self.model)

    @property
    def adapters(self) -> list[str]:
        return [name for name in self._templates if name is not None]

    def set_adapters(self, adapters: Mapping[str, str]) -> None:
        self._templates = {None: self._templates[None], **adapters}

    def reload(self) -> list[str]:
        self.reloads += 1
        return self.adapters

    async def close(self, grace: float = 0.0) -> None:
        for generation in list(self.running):
            generation.error = LoraFtError("the model was closed before the answer was complete")

    def statistics(self) -> SimpleNamespace:
        counters = SimpleNamespace(steps=7, step_seconds=0.5, encoder_calls=2, encoder_seconds=0.1)
        return SimpleNamespace(
            queued=3,
            running_rows=len(self.running),
            max_rows=32,
            pool_bytes=10,
            pool_limit=100,
            adapter_loads=1,
            counters=counters,
        )

    def start(self, row: Any, *, raw: bool = False, adapter: str | None = None, **options: Any) -> Generation:
        if self.unexpected is not None:
            raise self.unexpected
        if len(self.running) >= self.capacity:
            raise QueueFullError(self.capacity, 2.4)
        (prompt,) = self._prompts([row], raw=raw, adapter=adapter)
        labels = options.pop("labels", None)
        settings = Options.of({**self._defaults, **options})
        ids, cut = self._tokenizer.encode_sources([prompt], SOURCE_LENGTH)
        text = labels[0] if labels else prompt[::-1]
        generation = Generation(self, text, settings, len(ids[0]), cut[0])
        self.running.add(generation)
        return generation

    async def label_scores(
        self, row: Any, *, raw: bool = False, adapter: str | None = None, labels: Sequence[str] = ()
    ) -> dict[str, float]:
        labels = labels or self._labels
        if not labels:
            raise UsageError(f"{self.name} has no labels", "ask for an answer instead")
        return {label: 1 / len(labels) for label in labels}

    def _settings(self, adapter: str | None) -> Settings:
        if adapter not in self._templates:
            raise UsageError(f"there is no adapter {adapter}")
        task = {
            "template": self._templates[adapter],
            "codec": "none",
            "source_length": SOURCE_LENGTH,
            "labels": list(self._labels),
            "chat": self._chat,
        }
        return Settings.of(task, self._defaults, self._tokenizer)

    def _prompts(self, rows: list[Any], *, raw: bool = False, adapter: str | None = None) -> list[str]:
        template = self._templates[adapter]
        if raw or template is None:
            if not all(isinstance(row, str) for row in rows):
                raise UsageError("raw takes text, not rows")
            return rows
        prompt = Prompt(template)
        return [prompt.fill_text(row) if isinstance(row, str) else prompt.fill(row) for row in rows]


class Generation:
    """See lora_ft.models.async_model.Generation."""

    def __init__(self, engine: FakeEngine, text: str, options: Options, prompt_tokens: int, source_cut: bool) -> None:
        self.prompt_tokens, self.source_cut, self.error = prompt_tokens, source_cut, None
        self._engine, self._options = engine, options
        self._deltas = iter(_together(self._produce(text)) if engine.together else self._produce(text))
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self._engine.running.discard(self)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            await asyncio.sleep(0)
            while self._engine.paused and not self.cancelled and self.error is None:
                await asyncio.sleep(0.002)
            if self.error is not None:
                raise self.error
            if self.cancelled:
                raise StopAsyncIteration
            return next(self._deltas)
        except StopIteration:
            self.cancel()
            raise StopAsyncIteration from None
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _produce(self, text: str) -> Iterator[Delta]:
        limit, copies = self._options.max_new_tokens, self._options.num_return_sequences
        for place, letter in enumerate(text[: limit - 1] if len(text) >= limit else text):
            for answer in range(copies):
                yield Delta(answer, letter, (10 + place,), self._scores(), offsets=(place,))
        for answer in range(copies):
            if len(text) >= limit:
                yield Delta(answer, text[limit - 1], (9,), self._scores(), "length", (limit - 1,))
            else:
                yield Delta(answer, "", (1,), self._scores(), "stop", (len(text),))

    def _scores(self) -> tuple[float, ...] | None:
        return (-0.5,) if self._options.output_scores else None


def _together(deltas: Iterable[Delta]) -> list[Delta]:
    """Return all pieces of each answer as one."""
    answers: dict[int, Delta] = {}
    for delta in deltas:
        answers[delta.answer] = answers[delta.answer] + delta if delta.answer in answers else delta
    return list(answers.values())
