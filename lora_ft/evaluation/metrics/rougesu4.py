"""ROUGE-SU4: ordered word pairs with at most four words between them, and single words (Lin 2004, section 3.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.data.words import tokenizer_of
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate

GAP = 4


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return F-measures (beta 1). The best of several references counts, as in `rouge`. Sentences are not split."""
    words = tokenizer_of(settings).tokenize
    rows = [
        100 * max(f_measure(units(words(answer)), units(words(reference))) for reference in several)
        for answer, several in zip(answers, references, strict=True)
    ]
    return {"rougeSU4": Scored.mean(np.array(rows))}


def units(words: Sequence[str], gap: int | None = GAP, *, single: bool = True) -> Counter[tuple[str, ...]]:
    """Return the skip-bigrams of a text, and its single words.

    Args:
        words: Words of the text.
        gap: Maximum number of words between those of a pair; None for any number (ROUGE-S*).
        single: Count single words too (the U of SU).
    """
    reach = len(words) if gap is None else gap + 1
    found: Counter[tuple[str, ...]] = Counter((word,) for word in words if single)
    for at, word in enumerate(words):
        found.update((word, other) for other in words[at + 1 : at + 1 + reach])
    return found


def f_measure(answer: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    """Return the F-measure of common units, counted as often as both texts have them; 0 if either has none."""
    common = (answer & reference).total()
    return 2 * common / (answer.total() + reference.total()) if common else 0.0
