"""ROUGE on the 0-100 scale, row by row, and the intervals around its mean. Nothing here needs the network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
EXACT_MATCH = "exact_match"
METRICS = (*ROUGE, EXACT_MATCH)


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
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], use_stemmer: bool = True
    ) -> dict[str, list[float]]:
        scorer = RougeScorer(list(ROUGE), use_stemmer=use_stemmer)
        split, _ = sentence_splitter()
        rows = [
            scorer.score_multi(["\n".join(split(text)) for text in several], "\n".join(split(prediction)))
            for prediction, several in zip(predictions, references, strict=True)
        ]
        return {name: [100 * row[name].fmeasure for row in rows] for name in ROUGE}


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, use_stemmer: bool
) -> dict[str, np.ndarray]:
    """Scores [rows] of each type in `ROUGE`."""
    with _no_progress_bars():
        scores: dict[str, Any] = Rouge(keep_in_memory=True).compute(
            predictions=list(predictions), references=[list(several) for several in references], use_stemmer=use_stemmer
        )
    return {name: np.array(values) for name, values in scores.items()}


def score(
    metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]], *, use_stemmer: bool
) -> np.ndarray:
    """Scores [rows], 0 to 100, of one metric of `METRICS`."""
    if metric != EXACT_MATCH:
        return rouge(predictions, references, use_stemmer=use_stemmer)[metric]
    pairs = zip(predictions, references, strict=True)
    return np.array([100.0 * (text.strip() in {one.strip() for one in several}) for text, several in pairs])


@functools.cache
def sentence_splitter() -> tuple[Callable[[str], list[str]], str]:
    """How sentences are split, and its name for reports: nltk's English model where its data is, else untrained Punkt.

    Data is never downloaded (transformers PR#49014).
    """
    from nltk.tokenize import PunktSentenceTokenizer, sent_tokenize

    try:
        sent_tokenize("One. Two.")
    except LookupError:
        return PunktSentenceTokenizer().tokenize, "nltk Punkt, untrained (no punkt_tab data here)"
    return sent_tokenize, "nltk punkt_tab"


@dataclass(frozen=True)
class Estimate:
    """A mean over rows with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def estimate(scores: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """Plain mean of the rows' scores and the percentile interval of means of rows drawn with replacement.

    For the difference between two models give the rows' differences: the interval is then the paired one.
    """
    drawn = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    low, high = np.percentile(scores[drawn].mean(axis=1), [2.5, 97.5])
    return Estimate(float(scores.mean()), float(low), float(high))


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
