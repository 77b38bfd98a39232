"""ROUGE-1, -2, -L and -Lsum by rouge-score (Lin 2004).

rouge-score is called directly. The `rouge` metric of the package `evaluate` wraps the same scorer, with three problems.
It is downloaded when first used (evaluate#315, #567). It returns a bootstrap median instead of row scores
(evaluate#186). It does not split sentences, so its rougeLsum equals rougeL. Code that expects a metric of `evaluate`
can use `lora_ft.evaluation.evaluate_metric`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from lora_ft.data.sentences import SPLITTER, split_sentences
from lora_ft.data.words import is_unicode, tokenizer_of
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.metric_names import ROUGE

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return the F-measures of each type in `ROUGE`. Each type uses its own best reference of a row."""
    scorer = RougeScorer(list(ROUGE), tokenizer=tokenizer_of(settings))
    scores = [
        scorer.score_multi([_one_sentence_per_line(text) for text in texts], _one_sentence_per_line(answer))
        for answer, texts in zip(answers, references, strict=True)
    ]
    how = describe(settings)
    return {name: Scored.mean(np.array([100 * row[name].fmeasure for row in scores]), how) for name in ROUGE}


def describe(settings: Evaluate) -> str:
    """Return the signature of the scores: which words and sentences were compared."""
    words = ["Unicode words" if is_unicode(settings) else "ASCII words"]
    words += ["stemmed"] if settings.use_stemmer and settings.language == "en" else []
    words += ["without stop words"] if settings.stop_words else []
    return f"{', '.join(words)}; sentences by {SPLITTER}"


def _one_sentence_per_line(text: str) -> str:
    """Return a text with one sentence per line, the form from which rouge-score computes rougeLsum."""
    return "\n".join(split_sentences(text))
