"""What generates: a transformers model or an ONNX bundle, behind one call. A bundle's needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer, by_length, ragged
from lora_ft.core.trie import Trie
from lora_ft.data.labels import label_tokens
from lora_ft.export.runtime.generator import Generator, listed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import T5ForConditionalGeneration

BATCH_SIZE = 16


@dataclass(frozen=True)
class Answer:
    """One generated text.

    Attributes:
        text: decoded.
        tokens: how many were generated, </s> included.
        cut: whether it ended at the length limit instead of with </s>.
        source_cut: Whether its prompt was longer than the source length and was cut.
    """

    text: str
    tokens: int
    cut: bool
    source_cut: bool = False


class Backend(Protocol):
    """Generates answers to prompts."""

    tokenizer: Tokenizer

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None,
    ) -> list[Answer]:
        """Answers, in the order of the prompts.

        Args:
            prompts: taken as they are.
            options: of generation, by transformers' names; max_new_tokens must be among them, and `labels` may be:
                texts, the only answers there may be.
            batch_size: prompts of like length generated together.
            done: told how many prompts are finished.

        Raises:
            UsageError: an option that this engine does not have, or that may leave no label to answer with.
        """


class TorchBackend:
    """A transformers model, in the precision it is loaded in.

    Attributes:
        special: Its special tokens.
        own: Generation settings of its checkpoint, which options take precedence over.
    """

    def __init__(self, model: T5ForConditionalGeneration, tokenizer: Tokenizer, source_length: int) -> None:
        from lora_ft.models.generation import own_generation

        self.model, self.tokenizer, self.source_length = model, tokenizer, source_length
        own = own_generation(model)
        self.special, self.own = own.special.closed_by(tokenizer.closing), own.options

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None,
    ) -> list[Answer]:
        import torch

        from lora_ft.models.generation import only, torch_options

        chosen = {**self.own, **{name: value for name, value in options.items() if value is not None}}
        if chosen.pop("prompt_lookup", None):
            raise UsageError("prompt lookup is for bundles", "export the model first")
        labels, seed = chosen.pop("labels", ()), chosen.pop("seed", None)
        known = Options.of(chosen | ({"allowed": label_tokens(labels, self.tokenizer)} if labels else {}))
        known.check_tokens(self.model.config.vocab_size)
        settings = torch_options(known)
        if labels:
            settings["prefix_allowed_tokens_fn"] = allowed_tokens(labels, self.tokenizer, self.special.end)
        if seed is not None:
            torch.manual_seed(seed)
        elif known.do_sample:
            torch.seed()  # torch itself starts every process with the same one
        prompts = listed(prompts)
        rows, longer = self.tokenizer.encode_sources(prompts, self.source_length)
        answers: list[Answer] = [Answer("", 0, False)] * len(rows)
        finished = 0
        for batch in by_length(rows, batch_size):
            given = ragged([rows[i] for i in batch], self.special.pad)
            ids, mask = (torch.from_numpy(array).to(self.model.device) for array in given)
            with torch.inference_mode(), only(self.model, self.special):
                out = self.model.generate(input_ids=ids, attention_mask=mask, **settings)
            for i, tokens in zip(batch, out[:, 1:].cpu().numpy(), strict=True):
                answers[i] = _answer(self.special.trim(tokens), self.tokenizer, self.special, longer[i])
            finished += len(batch)
            done(finished)
        return answers


class OnnxBackend:
    """A bundle in the torch-free runtime."""

    def __init__(self, generator: Generator, adapter: str | None = None) -> None:
        self.generator, self.adapter = generator, adapter
        self.tokenizer = generator.of(adapter).tokenizer

    def generate(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        *,
        batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None,
    ) -> list[Answer]:
        chosen = dict(options)
        if "labels" in chosen:
            chosen["allowed"] = label_tokens(chosen.pop("labels"), self.tokenizer)
        made = self.generator.answer(prompts, **chosen, adapter=self.adapter, batch_size=batch_size, done=done)
        return [_answer(one.tokens, self.tokenizer, self.generator.special, one.source_cut) for one in made]

    def mixed(
        self, prompts: Sequence[str], adapters: Sequence[str | None], options: Mapping[str, Any], *, batch_size: int
    ) -> list[Answer]:
        """Answers of a bank to prompts for unlike adapters, each with its task's own codec and settings."""
        made = self.generator.answer(prompts, adapter=list(adapters), batch_size=batch_size, **options)
        copies = len(made) // max(1, len(prompts))
        return [
            _answer(
                one.tokens, self.generator.of(adapters[i // copies]).tokenizer, self.generator.special, one.source_cut
            )
            for i, one in enumerate(made)
        ]


def allowed_tokens(labels: Sequence[str], tokenizer: Tokenizer, end: int) -> Callable[[int, Tensor], list[int]]:
    """transformers' `prefix_allowed_tokens_fn` under which the labels are the only answers."""
    trie = Trie(label_tokens(labels, tokenizer), end)
    return lambda row, tokens: trie.after(tokens[1:].tolist())


def _answer(tokens: np.ndarray, tokenizer: Tokenizer, special: SpecialTokens, source_cut: bool) -> Answer:
    cut = len(tokens) == 0 or int(tokens[-1]) not in special.ends
    return Answer(tokenizer.decode([tokens])[0], len(tokens), cut, source_cut)
