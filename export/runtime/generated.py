"""A generated answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        tokens: Tokens int64 [n], including </s> if the answer ended.
        scores: With output_scores, the log-probability of each token [n]; with beam search the answer's score [1].
        source_cut: Whether the text was longer than the source length and was truncated.
    """

    tokens: np.ndarray
    scores: np.ndarray | None = None
    source_cut: bool = False

    def cut(self, limit: int) -> Generated:
        """Return the answer with at most `limit` tokens."""
        return self if len(self.tokens) <= limit else replace(self, tokens=self.tokens[:limit])
