"""F1 of the words that answer and reference have in common, as SQuAD 2.0's script computes it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.data.words import ENGLISH, UnicodeTokenizer
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """F1 of each row with the best of its references. Outside English, of the words of `UnicodeTokenizer`."""
    words = squad_words if settings.language == ENGLISH else UnicodeTokenizer().tokenize
    rows = [
        100 * max(f1(words(answer), words(reference)) for reference in several)
        for answer, several in zip(answers, references, strict=True)
    ]
    return {"f1": Scored.mean(np.array(rows))}


def squad_words(text: str) -> list[str]:
    """Small letters without ASCII punctuation and articles, split at blanks."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """0 to 1; where either is empty, whether both are."""
    if not answer or not reference:
        return float(not answer and not reference)
    common = (Counter(answer) & Counter(reference)).total()
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall) if common else 0.0
