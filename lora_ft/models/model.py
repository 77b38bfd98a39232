"""A model ready to generate: one class for runs, adapters, checkpoints, bundles and bases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import whole
from lora_ft.models.backends import BATCH_SIZE, Answer, Backend
from lora_ft.tasks.rows import rows_in_memory

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

Input = str | Mapping[str, Any]  # a text, or a row with the columns of the prompt
_INPUT = "pass a text, a dict with the columns of the prompt, or a list of them"


@dataclass(frozen=True)
class Model:
    """A model ready to generate, as returned by `lora_ft.load`.

    Attributes:
        kind: "run", "adapter", "checkpoint", "bundle" or "base".
        name: Name under which it was loaded. The adapter of a bank follows in parentheses.
        backend: PyTorch or ONNX Runtime, with the weights.
        prompt: Prompt of the model's task, or None.
        options: Generation options of the task, by transformers' names, including max_new_tokens.
        notice: A warning for its users, or "".
        task: Task of the model. None for a base, and for a bundle, which stores only the prompt.
        chat: Settings of a chat task, for `lora_ft.chat`; else None.
        adapter: Active adapter of a bank. None for its base, and for other models.
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
        """Return the names of a bank's adapters. Empty for other models."""
        return list(self.backend.adapters)

    def with_adapter(self, adapter: str | None) -> Model:
        """Return the same bank with another active adapter, or with its base if `adapter` is None.

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
        rows: Input | Iterable[Input],
        *,
        raw: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[str]:
        """Return one answer for each row.

        Args:
            rows: One or several texts or rows. Rows are inserted into the prompt of the model's task. A text is also
                inserted if the prompt has one column. Rows for a bank may name their adapter in a column `adapter`.
            raw: Use the texts as prompts, unchanged.
            batch_size: Number of rows generated together.
            progress: Receives the progress; None is silent.
            options: Generation options by transformers' names. They take precedence over those of the task. Without a
                seed, sampled answers differ from call to call.

        Raises:
            UsageError: A row does not fit the prompt, or the backend does not support an option.
        """
        answers = self.answers(rows, raw=raw, batch_size=batch_size, progress=progress, **options)
        return [answer.text for answer in answers]

    def answers(
        self,
        rows: Input | Iterable[Input],
        *,
        raw: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Return the answers with token counts and truncation flags. For the arguments, see `generate`."""
        progress, rows = progress or Silent(), listed_rows(rows)
        adapters = self.adapters_of(rows)
        prompts = self._prompts(rows, adapters, raw, progress)
        progress.stage("generating", len(prompts))
        defaults = {} if adapters else self.options  # the backend applies the options of each row's adapter
        answers = self.backend.generate(
            prompts,
            {**defaults, **options},
            batch_size=batch_size,
            on_progress=progress.advance,
            adapters=adapters or None,
        )
        if cut := sum(answer.source_cut for answer in answers):
            progress.note(f"{cut:,} of {len(answers):,} prompts exceeded the model's source length and were truncated")
        return answers

    def stream(self, rows: Input | Iterable[Input], *, raw: bool = False, **options: Any) -> Iterator[str]:
        """Yield pieces of text as they are generated, and a newline after each row.

        For the arguments, see `generate`.

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

    def prompts(self, rows: Sequence[Input], *, raw: bool = False) -> list[str]:
        """Return the finished prompt of each row, as `generate` uses it.

        Raises:
            UsageError: A row does not fit the prompt.
        """
        return self._prompts(rows, self.adapters_of(rows), raw, Silent())

    def _prompts(
        self, rows: Sequence[Input], adapters: Sequence[str | None], raw: bool, progress: Progress
    ) -> list[str]:
        """Return the prompt of each row, without lone surrogates."""
        adapter_prompts: dict[str | None, Prompt | None] = {
            name: self.backend.settings_of(name).prompt for name in set(adapters)
        }
        prompts = []
        for number, row in enumerate(rows, 1):
            prompt = adapter_prompts[adapters[number - 1]] if adapters else self.prompt
            try:
                prompts.append(_filled(self.name, prompt, row, raw))
            except UsageError as error:
                place = "" if isinstance(row, str) or len(rows) == 1 else f"row {number}: "
                raise UsageError(f"{place}{error.message}", error.remedy) from error
        cleaned = [whole(prompt) for prompt in prompts]
        broken = [number for number, (text, clean) in enumerate(zip(prompts, cleaned, strict=True), 1) if text != clean]
        if broken:
            progress.note(
                f"warning: {len(broken):,} of {len(rows):,} rows contain half a character (a lone surrogate), which "
                f"is read as U+FFFD (first: row {broken[0]}); write the text as UTF-8"
            )
        return cleaned


def listed_rows(rows: Input | Iterable[Input]) -> list[Input]:
    """Return texts and rows as a list: one text or row, an iterable of them, a `datasets.Dataset` or a pandas frame.

    Raises:
        UsageError: The value, or an item of it, is neither text nor a row.
    """
    if isinstance(rows, str | Mapping):
        return [rows]
    if hasattr(rows, "columns"):  # a pandas frame, which iterates over the names of its columns
        try:
            frame = rows_in_memory(rows, "rows")
        except ValueError as error:
            problem, _, remedy = str(error).rpartition("; ")
            raise UsageError(problem, remedy) from error
        if frame is not None or getattr(rows, "empty", False):
            return list(frame.rows) if frame else []
    if hasattr(rows, "columns") or not isinstance(rows, Iterable):
        raise UsageError(f"the input is neither text nor rows (got {type(rows).__name__})", _INPUT)
    items = list(rows)
    for number, item in enumerate(items, 1):
        if not isinstance(item, str | Mapping):
            raise UsageError(f"item {number} of the input is neither text nor row (got {type(item).__name__})", _INPUT)
    return items


def not_a_bank(name: str) -> UsageError:
    """Return the error about an adapter of a model that is not a bank."""
    return UsageError(
        f"--adapter is supported for banks only, and {name} is not a bank",
        "create one with `lora-ft export --adapters`",
    )


def _filled(name: str, prompt: Prompt | None, row: Input, raw: bool) -> str:
    if raw or prompt is None:
        if not isinstance(row, str):
            reason = "--raw is set, but the input is rows" if raw else f"{name} has no prompt to insert rows into"
            raise UsageError(reason, "pass text, or a model with a task")
        return row
    return prompt.fill_text(row) if isinstance(row, str) else prompt.fill(row)
