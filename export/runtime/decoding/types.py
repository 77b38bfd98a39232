"""The output of decoding: consecutive tokens of one answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_ft.core.special_tokens import SpecialTokens

__all__ = ["SpecialTokens", "TokenChunk"]


@dataclass(frozen=True)
class TokenChunk:
    """The next tokens of an answer.

    Attributes:
        answer: Number of the answer, source * num_return_sequences + rank.
        tokens: Tokens int64 [k], up to and including </s>.
        scores: Log-probabilities [k], or with beam search the answer's score [1]. None unless requested.
    """

    answer: int
    tokens: np.ndarray
    scores: np.ndarray | None = None
