"""A model that is ready to generate: one class, whatever it was loaded from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import whole
from lora_ft.models.backends import BATCH_SIZE, Answer, Backend

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

Input = str | Mapping[str, Any]  # a text, or a row with the columns of the prompt


@dataclass(frozen=True)
class Model:
    """A model ready to generate, from `lora_ft.load`.

    Attributes:
        kind: "run", "adapter", "checkpoint", "bundle" or "base".
        name: Name that it was loaded by; the adapter of a bank follows in brackets.
        backend: PyTorch or ONNX Runtime, with the weights.
        prompt: Prompt of the model's task, or None.
        options: Generation options of the task, by transformers' names, including max_new_tokens.
        notice: A warning for its users, or "".
        task: Task of the model. None for a base, and for a bundle, which carries only its prompt.
        chat: Settings of a chat task, for `lora_ft.chat`; else None.
        adapter: Adapter of a bank that answers; None for its base, and for other models.
    """

    kind: str
    name: str
    backend: Backend
    prompt: Prompt | None
    options: dict[str, Any]
    notice: str = ""
    task: Task | None = None
    chat: dict[str, Any] | None = None
    adapter: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def adapters(self) -> list[str]:
        """Return the names of a bank's adapters; none for other models."""
        return list(self.backend.adapters)

    def with_adapter(self, adapter: str | None) -> Model:
        """Return the same bank, answering with another of its adapters, or with its base.

        Raises:
            UsageError: The model is not a bank, or has no adapter of this name.
        """
        if not self.adapters:
            if adapter is None:
                return self
            raise not_a_bank(self.name)
        settings = self.backend.settings_of(adapter)
        name = self.name.removesuffix(f" ({self.adapter})")
        return replace(
            self,
            name=name if adapter is None else f"{name} ({adapter})",
            backend=self.backend.with_adapter(adapter),
            prompt=settings.prompt,
            options=dict(settings.defaults),
            chat=settings.chat,
            adapter=adapter,
        )

    def generate(
        self,
        rows: Input | Sequence[Input],
        *,
        raw: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[str]:
        """Return one answer for each row.

        Args:
            rows: One or several texts or rows. Rows are inserted into the prompt of the model's task, and so is a text
                if the prompt has one column. Rows of a bank may name their adapter in a column `adapter`.
            raw: Treat the texts as finished prompts.
            batch_size: Number of rows generated together.
            progress: Receives the progress; None is silent.
            options: Generation options by transformers' names. They take precedence over those of the task. Without a
                seed, sampled answers differ from call to call.

        Raises:
            UsageError: A row does not fit the prompt, or the backend does not support an option.
        """
        found = self.answers(rows, raw=raw, batch_size=batch_size, progress=progress, **options)
        return [answer.text for answer in found]

    def answers(
        self,
        rows: Input | Sequence[Input],
        *,
        raw: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Return the answers with token counts and truncation flags. Arguments are those of `generate`."""
        progress, rows = progress or Silent(), listed_rows(rows)
        adapters = self.adapters_of(rows)
        prompts = self._prompts(rows, adapters, raw, progress)
        progress.stage("generating", len(prompts))
        own = {} if adapters else self.options  # each adapter of a bank has options of its own
        answers = self.backend.generate(
            prompts, {**own, **options}, batch_size=batch_size, done=progress.advance, adapters=adapters or None
        )
        if cut := sum(answer.source_cut for answer in answers):
            progress.note(f"{cut:,} of {len(answers):,} prompts are longer than the model's source length and were cut")
        return answers

    def stream(self, rows: Input | Sequence[Input], *, raw: bool = False, **options: Any) -> Iterator[str]:
        """Yield pieces of text as they are generated, and a newline after each row. Arguments: see `generate`.

        Raises:
            UsageError: The model is not a bundle, or as for `generate`.
        """
        rows = listed_rows(rows)
        adapters = self.adapters_of(rows)
        prompts = self._prompts(rows, adapters, raw, Silent())
        for prompt, adapter in zip(prompts, adapters or [self.adapter] * len(rows), strict=True):
            yield from self.backend.stream(prompt, options, adapter=adapter)
            yield "\n"

    def adapters_of(self, rows: Sequence[Input]) -> list[str | None]:
        """Return the adapter that each row of a bank names in its column `adapter`, or an empty list if none does."""
        if not self.adapters or self.adapter is not None:
            return []
        names = [None if isinstance(row, str) else row.get("adapter") or None for row in rows]
        return names if any(names) else []

    def _prompts(
        self, rows: Sequence[Input], adapters: Sequence[str | None], raw: bool, progress: Progress
    ) -> list[str]:
        """Return the prompt of each row, without lone surrogates."""
        of_adapter: dict[str | None, Prompt | None] = {
            name: self.backend.settings_of(name).prompt for name in set(adapters)
        }
        prompts = []
        for number, row in enumerate(rows, 1):
            prompt = of_adapter[adapters[number - 1]] if adapters else self.prompt
            try:
                prompts.append(_filled(self.name, prompt, row, raw))
            except UsageError as error:
                place = "" if isinstance(row, str) or len(rows) == 1 else f"row {number}: "
                raise UsageError(f"{place}{error.message}", error.remedy) from error
        sound = [whole(prompt) for prompt in prompts]
        halves = [number for number, (text, other) in enumerate(zip(prompts, sound, strict=True), 1) if text != other]
        if halves:
            progress.note(
                f"warning: {len(halves):,} of {len(rows):,} rows hold half a character (a lone surrogate), which is "
                f"read as U+FFFD, first row {halves[0]}; write the text as UTF-8"
            )
        return sound


def listed_rows(rows: Input | Sequence[Input]) -> Sequence[Input]:
    """Return rows as a sequence; a single text or row is one."""
    return [rows] if isinstance(rows, str | Mapping) else rows


def not_a_bank(name: str) -> UsageError:
    """Return the error about a model without adapters of its own."""
    return UsageError(f"{name} is no bank, and --adapter is for banks", "make one with `lora-ft export --adapters`")


def _filled(name: str, prompt: Prompt | None, row: Input, raw: bool) -> str:
    if raw or prompt is None:
        if not isinstance(row, str):
            reason = "--raw takes text, not rows" if raw else f"{name} has no prompt to put rows into"
            raise UsageError(reason, "give text, or a model with a task")
        return row
    return prompt.fill_text(row) if isinstance(row, str) else prompt.fill(row)
