"""What decoding puts out: some tokens of one answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_ft.core.special_tokens import SpecialTokens

__all__ = ["SpecialTokens", "TokenChunk"]


@dataclass(frozen=True)
class TokenChunk:
    """The next tokens of an answer.

    Attributes:
        answer: its number, source * num_return_sequences + its rank.
        tokens: int64 [k], not beyond </s>.
        scores: log-probabilities [k], or for beams the answer's score [1]; None where none were asked for.
    """

    answer: int
    tokens: np.ndarray
    scores: np.ndarray | None = None
