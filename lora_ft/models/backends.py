"""Backends of a model behind one protocol: PyTorch, and ONNX Runtime, which does not need torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lora_ft.core.consensus import chosen
from lora_ft.core.constraint import constrained
from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options, overridden
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer, by_length, ragged
from lora_ft.core.trie import Trie
from lora_ft.data.labels import label_tokens
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.inputs import listed
from lora_ft.export.runtime.manifest import ADAPTERS, NAME
from lora_ft.export.runtime.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import T5ForConditionalGeneration

BATCH_SIZE = 16


@dataclass(frozen=True)
class Answer:
    """One generated text.

    Attributes:
        text: Decoded text.
        tokens: Number of generated tokens, including </s>.
        cut: True if generation stopped at the length limit instead of at </s>.
        source_cut: True if the prompt exceeded the source length and was truncated.
    """

    text: str
    tokens: int
    cut: bool
    source_cut: bool = False


class Backend(Protocol):
    """The weights of a model and the engine that runs them.

    Attributes:
        tokenizer: Tokenizer of the model's texts.
        adapters: Names of the adapters of a bank; empty for other models.
    """

    tokenizer: Tokenizer
    adapters: Sequence[str]

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int], None] = lambda rows: None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        """Return answers in the order of the prompts.

        Args:
            prompts: Prompts, used unchanged.
            options: Generation options by transformers' names. `max_new_tokens` is required. `labels` is optional and
                lists the only possible answers.
            batch_size: Number of prompts of similar length that are generated together.
            on_progress: Called with the number of finished prompts.
            adapters: Adapter of each prompt, for a bank. Each prompt uses the codec and options of its adapter's task.

        Raises:
            UsageError: The backend does not support an option, or an option excludes a label.
        """

    def stream(self, prompt: str, options: Mapping[str, Any], *, adapter: str | None = None) -> Iterator[str]:
        """Yield pieces of the answer to one prompt.

        Raises:
            UsageError: The backend cannot stream, or does not support an option.
        """

    def settings_of(self, adapter: str | None) -> Settings:
        """Return prompt, options and codec of an adapter of a bank, or of its base if `adapter` is None.

        Raises:
            UsageError: There is no such adapter.
        """

    def with_adapter(self, adapter: str | None) -> Backend:
        """Return the same backend, answering with another adapter of the bank."""

    def task_of(self, adapter: str) -> tuple[dict[str, Any], Path] | None:
        """Return the content of the task stored with an adapter of a bank, and the path of its file."""


class TorchBackend:
    """A transformers model, in the precision in which it was loaded.

    Attributes:
        special: Special tokens of the model.
        defaults: Generation settings of the checkpoint. Options take precedence over them.
    """

    adapters: Sequence[str] = ()

    def __init__(self, model: T5ForConditionalGeneration, tokenizer: Tokenizer, source_length: int) -> None:
        from lora_ft.models.generation import model_generation

        self.model, self.tokenizer, self.source_length = model, tokenizer, source_length
        generation = model_generation(model)
        self.special, self.defaults = generation.special.closed_by(tokenizer.closing), generation.options

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int], None] = lambda rows: None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        import torch

        from lora_ft.models.generation import constraint_processor, torch_options, without_defaults

        combined = overridden(self.defaults, options)
        if combined.pop("prompt_lookup", None):
            raise UsageError("prompt_lookup is supported for bundles only", "export the model first")
        labels, seed = combined.pop("labels", ()), combined.pop("seed", None)
        restricted = combined | ({"allowed": label_tokens(labels, self.tokenizer)} if labels else {})
        checked = Options.of(constrained(restricted, self.tokenizer))
        checked.check_tokens(self.model.config.vocab_size)
        settings = torch_options(checked)
        if labels:
            settings["prefix_allowed_tokens_fn"] = allowed_tokens(labels, self.tokenizer, self.special.end)
        if seed is not None:
            torch.manual_seed(seed)
        elif checked.do_sample:
            torch.seed()  # torch itself starts every process with the same seed
        prompts = listed(prompts)
        rows, cut_sources = self.tokenizer.encode_sources(prompts, self.source_length)
        answers: list[list[Answer]] = [[] for _ in rows]
        finished = 0
        for batch in by_length(rows, batch_size):
            arrays = ragged([rows[i] for i in batch], self.special.pad)
            if checked.constraint:
                settings["logits_processor"] = [constraint_processor(checked.constraint, self.special)]
            ids, mask = (torch.from_numpy(array).to(self.model.device) for array in arrays)
            with torch.inference_mode(), without_defaults(self.model, self.special):
                out = self.model.generate(input_ids=ids, attention_mask=mask, **settings)
            samples = [self.special.trim(tokens) for tokens in out[:, 1:].cpu().numpy()]
            copies = len(samples) // len(batch)  # mbr or num_return_sequences
            for number, i in enumerate(batch):
                own = samples[number * copies : (number + 1) * copies]
                kept = (
                    [own[chosen(own, checked.utility, self.special)]] if checked.mbr > 1 and checked.do_sample else own
                )
                answers[i] = [_answer(tokens, self.tokenizer, self.special, cut_sources[i]) for tokens in kept]
            finished += len(batch)
            on_progress(finished)
        return [answer for group in answers for answer in group]

    def stream(self, prompt: str, options: Mapping[str, Any], *, adapter: str | None = None) -> Iterator[str]:
        raise UsageError("streaming is supported for bundles only", "export the model first")

    def settings_of(self, adapter: str | None) -> Settings:
        raise AssertionError("a PyTorch model has no bank adapters")

    def with_adapter(self, adapter: str | None) -> TorchBackend:
        return self

    def task_of(self, adapter: str) -> None:
        return None


class OnnxBackend:
    """A bundle in the torch-free runtime."""

    def __init__(self, generator: Generator, adapter: str | None = None) -> None:
        self.generator, self.adapter = generator, adapter
        self.tokenizer = generator.of(adapter).tokenizer
        self.adapters: Sequence[str] = generator.adapters

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int], None] = lambda rows: None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        settings, generator = self._settings(options), self.generator
        adapter = self.adapter if adapters is None else list(adapters)
        generated = generator.answer(
            prompts, **settings, adapter=adapter, batch_size=batch_size, on_progress=on_progress
        )
        copies = len(generated) // max(1, len(prompts))  # num_return_sequences
        tokenizers = [
            self.tokenizer if adapters is None else generator.of(adapters[i // copies]).tokenizer
            for i in range(len(generated))
        ]
        return [
            _answer(answer.tokens, tokenizer, generator.special, answer.source_cut)
            for answer, tokenizer in zip(generated, tokenizers, strict=True)
        ]

    def stream(self, prompt: str, options: Mapping[str, Any], *, adapter: str | None = None) -> Iterator[str]:
        return self.generator.stream(prompt, adapter=adapter, **self._settings(options))

    def settings_of(self, adapter: str | None) -> Settings:
        return self.generator.of(adapter)

    def with_adapter(self, adapter: str | None) -> OnnxBackend:
        return OnnxBackend(self.generator, adapter)

    def task_of(self, adapter: str) -> tuple[dict[str, Any], Path] | None:
        content = self.generator.manifest[ADAPTERS][adapter].get("task")
        return (content, self.generator.folder / NAME) if content else None

    def _settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the runtime, which knows labels as tokens."""
        settings = dict(options)
        if "labels" in settings:
            settings["allowed"] = label_tokens(settings.pop("labels"), self.tokenizer)
        return settings


def allowed_tokens(labels: Sequence[str], tokenizer: Tokenizer, end: int) -> Callable[[int, Tensor], list[int]]:
    """Return transformers' `prefix_allowed_tokens_fn` that restricts answers to the labels."""
    trie = Trie(label_tokens(labels, tokenizer), end)
    return lambda row, tokens: trie.after(tokens[1:].tolist())


def _answer(tokens: np.ndarray, tokenizer: Tokenizer, special: SpecialTokens, source_cut: bool) -> Answer:
    cut = len(tokens) == 0 or int(tokens[-1]) not in special.ends
    return Answer(tokenizer.decode([tokens])[0], len(tokens), cut, source_cut)
