"""ROUGE-SU4: ordered word pairs with at most four words between them, and single words (Lin 2004, section 3.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.data.words import tokenizer_of
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

GAP = 4


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the F-measure (beta 1) of each row with its best reference. Sentences are not split."""
    words = tokenizer_of(settings).tokenize
    rows = [
        100 * max(f_measure(units(words(answer)), units(words(reference))) for reference in texts)
        for answer, texts in zip(answers, references, strict=True)
    ]
    return {"rougeSU4": Scored.mean(np.array(rows))}


def units(words: Sequence[str], gap: int | None = GAP, *, single: bool = True) -> Counter[tuple[str, ...]]:
    """Return the skip-bigrams of a text, and its single words.

    Args:
        words: Words of the text.
        gap: Maximum number of words between the two of a pair; None for no limit (ROUGE-S*).
        single: Also count single words (the U of SU).
    """
    reach = len(words) if gap is None else gap + 1
    counts: Counter[tuple[str, ...]] = Counter((word,) for word in words if single)
    for i, word in enumerate(words):
        counts.update((word, later) for later in words[i + 1 : i + 1 + reach])
    return counts


def f_measure(answer: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    """Return the F-measure of shared units, with their multiplicity; 0 without shared units."""
    common = (answer & reference).total()
    return 2 * common / (answer.total() + reference.total()) if common else 0.0
