"""METEOR by nltk. It requires the WordNet data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.data.words import UnicodeTokenizer
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the METEOR of each row with its best reference. Synonyms are looked up by word stem, as in nltk.

    Raises:
        UsageError: The WordNet data is missing, or the language is not English.
    """
    from nltk.translate.meteor_score import meteor_score

    require(settings)
    words = UnicodeTokenizer().tokenize
    rows = [
        100 * meteor_score([words(reference) for reference in texts], words(answer))
        for answer, texts in zip(answers, references, strict=True)
    ]
    return {"meteor": Scored.mean(np.array(rows), "nltk, Porter stems and WordNet synonyms")}


def require(settings: Evaluate) -> None:
    """Raise UsageError if the WordNet data is missing, or if the language is not English."""
    from nltk.corpus import wordnet

    if settings.language != "en":
        raise UsageError(f"meteor supports English only (got evaluate.language={settings.language})", "use chrf")
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UsageError(
            "meteor needs nltk's WordNet data, which is not installed",
            "python -m nltk.downloader wordnet, or remove meteor from evaluate.metrics",
        ) from error
