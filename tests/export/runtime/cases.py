"""Random models under ONNX Runtime and under transformers, sources of unlike lengths, and transformers' answers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.generated import Generated
from tests.export.oracle import END, PAD, SPECIAL, make_bundle, ragged, redraw, torch_model
from tests.tiny import save_tiny_t5

LETTERS = [*string.ascii_letters, *string.digits]
# (seed, factor of all logits): of those that differ from row to row and end at any length. The second kind is unsure
# of most tokens, so that beams meet, answers end side by side, and samples differ.
MODELS = [(8, 1.0), (14, 1.0), (19, 0.2), (21, 0.15)]


@dataclass(frozen=True)
class Pair:
    """A bundle and transformers' model of the checkpoint it was made of."""

    generator: Generator
    torch: T5ForConditionalGeneration

    @classmethod
    def make(cls, folder: Path, seed: int, heat: float) -> Pair:
        """Create a pair with random weights; `heat` is a factor of all logits."""
        checkpoint = redraw(save_tiny_t5(folder / "checkpoint"), seed=seed, end=3)
        weights = load_file(checkpoint / "model.safetensors")
        weights["lm_head.weight"] *= heat
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
        make_bundle(checkpoint, folder / "bundle")
        return cls(Generator.load(folder / "bundle", threads=1), torch_model(checkpoint))

    def answer(self, texts: Sequence[str], **options: Any) -> list[Generated]:
        """The bundle's answers, all texts in one batch."""
        return self.generator.answer(texts, batch_size=len(texts), **options)

    def made(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """The tokens of `answer`."""
        return [answer.tokens.tolist() for answer in self.answer(texts, **options)]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Sources and their mask."""
        return ragged(self.generator.tokenizer.encode(texts, self.generator.source_length))

    def generate(self, texts: Sequence[str], **options: Any) -> Any:
        """Return the output of transformers' `generate` for all texts in one batch, with scores."""
        ids, mask = (torch.from_numpy(array) for array in self.encode(texts))
        outputs = {"return_dict_in_generate": True, "output_scores": True}
        with torch.inference_mode():
            return self.torch.generate(input_ids=ids, attention_mask=mask, **outputs, **options)

    def expected(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        """transformers' answers, up to </s>."""
        return answers(self.generate(texts, **options).sequences)


def answers(sequences: torch.Tensor) -> list[list[int]]:
    """Rows of transformers' sequences without the start token, up to </s>: it pads with 0 or with another </s>."""
    return [SPECIAL.trim(row[1:]).tolist() for row in sequences.numpy()]


def words(seed: int, count: int = 8, longest: int = 28) -> list[str]:
    """Random texts of unlike lengths, one of them empty."""
    rng = np.random.default_rng(seed)
    lengths = [longest, 0, *rng.integers(1, longest, count - 2)]
    return ["".join(rng.choice(LETTERS, length)) for length in lengths]


def edits(plain_answers: Sequence[Sequence[int]]) -> dict[str, dict[str, Any]]:
    """Options that edit logits; their tokens are taken from plain answers, so that some of those must change."""
    first, second = (list(row) for row in sorted(plain_answers, key=len, reverse=True)[:2])
    several = [first[:2], first[2:5], second[1:3], [5, first[0]]]
    # transformers 5 takes the start token for a part of the answer here, 4 does not
    several = [sequence for sequence in several if sequence[0] != PAD]
    return {
        "repetition_penalty": {"repetition_penalty": 1.7},
        "repetition_penalty that rewards": {"repetition_penalty": 0.6},
        "no word twice": {"no_repeat_ngram_size": 1},
        "no pair twice": {"no_repeat_ngram_size": 2},
        "no three twice": {"no_repeat_ngram_size": 3},
        "bad words of one token": {"bad_words_ids": [[first[0]], [second[1]]]},
        "bad words of several tokens": {"bad_words_ids": several},
        "bad words of all lengths and the end": {"bad_words_ids": [*several, [END], [first[1]]]},
        "suppress_tokens": {"suppress_tokens": [first[0], second[-2]]},
        "suppress_tokens with the end": {"suppress_tokens": [END]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [row[0] for row in plain_answers]},
        "forced_bos_token_id": {"forced_bos_token_id": 40},
        "forced_eos_token_id": {"forced_eos_token_id": END},
        "forced_eos_token_id that is not the end": {"forced_eos_token_id": 33},
        "min_new_tokens": {"min_new_tokens": 7},
        "forced start, then some suppressed": {"forced_bos_token_id": 40, "begin_suppress_tokens": [40, END, first[0]]},
        "bound at both ends": {"min_new_tokens": 7, "forced_bos_token_id": first[1], "forced_eos_token_id": END},
        "all of them": {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [*several, [first[1]]],
            "min_new_tokens": 3,
            "forced_bos_token_id": 40,
            "forced_eos_token_id": END,
            "suppress_tokens": [second[-2]],
            "begin_suppress_tokens": [first[0]],
        },
    }


EDITS = tuple(edits([[2, 3, 4, 5, 6]] * 2))
