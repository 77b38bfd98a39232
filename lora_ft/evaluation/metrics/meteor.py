"""METEOR by nltk. It requires the WordNet data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.data.words import UnicodeTokenizer
from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return each row's METEOR with the best of its references. Synonyms are looked up by their stems, as in nltk.

    Raises:
        UsageError: The WordNet data is missing, or the language is not English.
    """
    from nltk.translate.meteor_score import meteor_score

    require(settings)
    words = UnicodeTokenizer().tokenize
    rows = [
        100 * meteor_score([words(reference) for reference in several], words(answer))
        for answer, several in zip(answers, references, strict=True)
    ]
    return {"meteor": Scored.mean(np.array(rows), "nltk, Porter stems and WordNet synonyms")}


def require(settings: Evaluate) -> None:
    """Raise UsageError if the WordNet data is missing, or if the language is not English."""
    from nltk.corpus import wordnet

    if settings.language != "en":
        raise UsageError(f"meteor knows English only, and evaluate.language is {settings.language}", "use chrf")
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UsageError(
            "meteor needs nltk's data of WordNet, which is not here",
            "python -m nltk.downloader wordnet, or take meteor out of evaluate.metrics",
        ) from error
