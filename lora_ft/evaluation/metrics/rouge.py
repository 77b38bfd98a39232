"""ROUGE-1, -2, -L and -Lsum by rouge-score (Lin 2004)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from lora_ft.data.sentences import SPLITTER, split_sentences
from lora_ft.data.words import is_unicode, tokenizer_of
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.metric_names import ROUGE

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate


class Rouge(evaluate.Metric):
    """rouge-score as an `evaluate.Metric` that is made here instead of being downloaded (evaluate#315, #567).

    Several references per prediction are allowed; each type takes the best of them by F-measure, as rouge-score does.
    Unlike the hub's metric it returns every row's score (the hub's gives a bootstrap median, evaluate#186) and splits
    sentences for rougeLsum (without newlines that would just be rougeL).
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE F-measures of each prediction, 0 to 100",
            citation="Lin, C.-Y. (2004). ROUGE: A Package for Automatic Evaluation of Summaries.",
            inputs_description="predictions: texts; references: a list of acceptable texts for each",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer | None = None
    ) -> dict[str, list[float]]:
        scorer = RougeScorer(list(ROUGE), tokenizer=tokenizer or DefaultTokenizer(use_stemmer=True))
        rows = [
            scorer.score_multi([_by_sentence(text) for text in several], _by_sentence(prediction))
            for prediction, several in zip(predictions, references, strict=True)
        ]
        return {name: [100 * row[name].fmeasure for row in rows] for name in ROUGE}


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """F-measures of each type in `ROUGE`; of several references the best one counts, for each type by itself."""
    with _no_progress_bars():
        scores: dict[str, Any] = Rouge(keep_in_memory=True).compute(
            predictions=list(answers),
            references=[list(several) for several in references],
            tokenizer=tokenizer_of(settings),
        )
    how = describe(settings)
    return {name: Scored.mean(np.array(values), how) for name, values in scores.items()}


def describe(settings: Evaluate) -> str:
    """Return the signature of the scores: which words and sentences were compared."""
    words = ["Unicode words" if is_unicode(settings) else "ASCII words"]
    words += ["stemmed"] if settings.use_stemmer and settings.language == "en" else []
    words += ["without stop words"] if settings.stop_words else []
    return f"{', '.join(words)}; sentences by {SPLITTER}"


def _by_sentence(text: str) -> str:
    """Return a text with a sentence a line, as rouge-score reads it."""
    return "\n".join(split_sentences(text))


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """`evaluate` casts its few rows under a progress bar of `datasets`; nobody wants to see that."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
