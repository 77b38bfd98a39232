"""Minimum-Bayes-risk decoding: of several samples, the one that agrees most with the others.

A likeliest answer may be unlike everything else that a model would say, and short. Samples show what it would say, and
the one with the highest mean utility against the others is their consensus (arXiv 2108.04718). The utility is a ROUGE
score of two answers, computed on tokens instead of words: no tokenizer and no language is needed for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.core.special_tokens import SpecialTokens

UTILITIES: dict[str, Callable[[Sequence[int], Sequence[int]], int]]
"""Number of tokens that two answers share, by the name of the utility."""


def chosen(answers: Sequence[np.ndarray], utility: str, special: SpecialTokens) -> int:
    """Return the number of the answer with the highest mean utility, the first one in a tie.

    Args:
        answers: Samples as tokens, each [n].
        utility: A key of `UTILITIES`.
        special: Special tokens of the model; those that end an answer are not compared.
    """
    texts = [answer[~special.ended(answer)].tolist() for answer in answers]
    return int(utilities(texts, utility).mean(axis=1).argmax())


def utilities(texts: Sequence[Sequence[int]], utility: str) -> np.ndarray:
    """Return the utility of each text against each other, an F-score from 0 to 1: [n, n], with ones on the diagonal."""
    shared, table = UTILITIES[utility], np.eye(len(texts))
    for i, text in enumerate(texts):
        for j in range(i):
            length = len(text) + len(texts[j])
            table[i, j] = table[j, i] = 2 * shared(text, texts[j]) / length if length else 1.0
    return table


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of tokens in common, each as often as both have it."""
    return sum((Counter(left) & Counter(right)).values())


def _common_in_order(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the longest common subsequence: each bit is a place of `left`, and zeros are matches."""
    places: dict[int, int] = {}
    for i, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << i
    row = every = (1 << len(left)) - 1
    for token in right:
        matches = row & places.get(token, 0)
        row = (row + matches) | (row - matches)
    return len(left) - (row & every).bit_count()


UTILITIES = {"rouge1": _common, "rougeL": _common_in_order}
