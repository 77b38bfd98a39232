"""METEOR by nltk, where the data of WordNet is."""

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
    """METEOR of each row with the best of its references; synonyms are looked up by their stems, as nltk does.

    Raises:
        UsageError: WordNet is not here, or the language is not English.
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
    """Raise UsageError where WordNet is not here, or the language is not English."""
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
