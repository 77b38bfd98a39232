"""Measure prompts and targets for a new task file: length limits, and the codec that their characters need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_ft.core.codecs import codec_named
from lora_ft.core.columns import Column, is_empty, text_of
from lora_ft.core.errors import UsageError
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import Tokenizer

CHARACTERS_PER_TOKEN = 3.5
"""Characters per token of English under T5's tokenizer, on the low side so that estimated limits cut less."""
_SAMPLE = 5000  # texts to tokenize, evenly spaced; a tenth as many of the longest are added
_LONGEST_TARGET = 512
_LONGEST_SOURCE = 1024
_MISSING = frozenset("\n\t{}<>~\\^`")  # characters that T5's vocabulary lacks or turns into spaces
_RARE = 0.001


@dataclass(frozen=True)
class Lengths:
    """Length limits and a codec that fit rows.

    Attributes:
        source, target: Limits for `lengths.source` and `lengths.target`, in tokens.
        prompts, targets: Percentiles of the lengths, as a phrase.
        cuts_targets: True if some targets exceed the limit, or may exceed it.
        reason: Sentence on how lengths were measured.
        codec, codec_reason: Name of the codec and the reason for it; "none" and "" for plain text.
        empty_rows: Number of rows with an empty cell in a column that is used.
    """

    source: int
    target: int
    prompts: str
    targets: str
    cuts_targets: bool
    reason: str
    codec: str
    codec_reason: str
    empty_rows: int


def measure_lengths(
    rows: Sequence[Mapping[str, Any]], prompt: str, target: str, tokenizer: Tokenizer | None
) -> Lengths:
    """Return length limits and a codec for the prompts and targets of rows.

    Args:
        rows: Rows of all splits.
        prompt: Template of the prompt.
        target: Column that the model writes.
        tokenizer: Tokenizer of the base. Without one, lengths are estimated from characters.
    """
    template, column = Prompt(prompt), Column(target)
    columns = [column, *(place.column for place in template.placeholders if place.default is None)]
    filled = [row for row in rows if not any(is_empty(each.find(row)) for each in columns)]
    if not filled:
        raise UsageError("every row has an empty cell among the columns in use", "name another column or file")
    prompts = [template.fill(row) for row in filled]
    targets = [text_of(column.find(row), target) for row in filled]
    codec, codec_reason = _codec(prompts, targets)
    through = codec_named(codec)
    source_tokens = _tokens([through.encode_prompt(text) for text in prompts], tokenizer)
    target_tokens = _tokens([through.encode(text) for text in targets], tokenizer)
    longest, usual = int(target_tokens.max()), int(np.percentile(target_tokens, 99))
    limit = longest if longest <= min(2 * usual, _LONGEST_TARGET) else min(usual, _LONGEST_TARGET)
    return Lengths(
        source=min(_round_up(int(np.percentile(source_tokens, 98)), 32), _LONGEST_SOURCE),
        target=max(_round_up(limit, 8), 8),
        prompts=_percentiles(source_tokens),
        targets=_percentiles(target_tokens),
        cuts_targets=tokenizer is None or _round_up(limit, 8) < longest,
        reason=(
            f"Tokens are estimated at {CHARACTERS_PER_TOKEN:g} characters each; `lora-ft validate` counts them."
            if tokenizer is None
            else "Tokens are counted with the tokenizer of the base."
        ),
        codec=codec,
        codec_reason=codec_reason,
        empty_rows=len(rows) - len(filled),
    )


def _codec(prompts: Sequence[str], targets: Sequence[str]) -> tuple[str, str]:
    """Return the codec that the characters of the texts need, and the reason."""
    sides = (("prompts", prompts), ("targets", targets))
    share, side = max(
        (sum(not _MISSING.isdisjoint(text) for text in texts) / len(texts), side) for side, texts in sides
    )
    if share > _RARE:
        return "text", f"{share:.1%} of the {side} have newlines or characters that T5's vocabulary lacks"
    return "none", ""


def _tokens(texts: Sequence[str], tokenizer: Tokenizer | None) -> np.ndarray:
    """Return lengths in tokens, in any order: of all texts, or of a sample and the longest ones if they are many."""
    if tokenizer is None:
        return np.array([math.ceil(len(text) / CHARACTERS_PER_TOKEN) + 1 for text in texts])
    if len(texts) > 2 * _SAMPLE:
        longest = sorted(texts, key=len)[-_SAMPLE // 10 :]
        texts = [*texts[:: len(texts) // _SAMPLE], *longest]
    return np.array([len(row) for row in tokenizer.encode_forms(texts)])


def _percentiles(tokens: np.ndarray) -> str:
    middle, most, longest = (int(value) for value in np.percentile(tokens, (50, 95, 100), method="nearest"))
    return f"50 % up to {middle} tokens, 95 % up to {most}, longest {longest}"


def _round_up(tokens: int, step: int) -> int:
    return math.ceil(max(tokens, 1) / step) * step
