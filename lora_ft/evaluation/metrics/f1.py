"""F1 of the words shared by answer and reference, as SQuAD 2.0's script computes it."""

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
    from lora_ft.tasks.evaluate import Evaluate

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the F1 of each row with its best reference. `UnicodeTokenizer` splits words outside English."""
    words = squad_words if settings.language == ENGLISH else UnicodeTokenizer().tokenize
    rows = [
        100 * max(f1(words(answer), words(reference)) for reference in texts)
        for answer, texts in zip(answers, references, strict=True)
    ]
    return {"f1": Scored.mean(np.array(rows))}


def squad_words(text: str) -> list[str]:
    """Return the lowercased words of a text, without ASCII punctuation and articles, split at whitespace."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return F1, 0 to 1. If a list is empty, F1 is 1 if both are empty, else 0."""
    if not answer or not reference:
        return float(not answer and not reference)
    common = (Counter(answer) & Counter(reference)).total()
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall) if common else 0.0
