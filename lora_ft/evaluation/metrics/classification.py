"""Scores of answers that are labels: accuracy, macro-F1, and precision, recall and F1 of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label, 0 to 100.

    Attributes:
        precision: Share of answers with this label that are correct; 0 without such answers.
        recall: Share of rows of this label that were answered with it; 0 without such rows.
        f1: Harmonic mean of precision and recall.
        rows: Number of rows of this label.
        answers: Number of rows answered with this label.
    """

    precision: float
    recall: float
    f1: float
    rows: int
    answers: int


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Return accuracy and macro-F1: the unweighted mean F1 of the labels that occur in rows.

    If a row has several references, its label is the answered one, or else the first.
    """
    labels = sorted({text.strip() for texts in references for text in texts})
    counts = _counts(answers, references, labels)
    correct = 100.0 * counts[:, : len(labels)].sum(axis=1)

    def macro_f1(sums: np.ndarray) -> float:
        hits, rows, answered = sums.reshape(3, len(labels))
        occurs = rows > 0
        return float(100 * np.mean(2 * hits[occurs] / (rows + answered)[occurs]))

    return {"accuracy": Scored.mean(correct), "macro_f1": Scored(correct, counts, macro_f1)}


def by_label(
    answers: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, LabelScore]:
    """Return the scores of each label."""
    sums = _counts(answers, references, labels).sum(axis=0).reshape(3, len(labels)).astype(int)
    return {
        label: LabelScore(
            precision=_percentage(hits, answered),
            recall=_percentage(hits, rows),
            f1=_percentage(2 * hits, rows + answered),
            rows=rows,
            answers=answered,
        )
        for label, (hits, rows, answered) in zip(labels, sums.T.tolist(), strict=True)
    }


def _percentage(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _counts(answers: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Return [rows, 3 * labels] of 0 or 1: answered correctly with a label, row of the label, answered with it."""
    numbers = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(answers), 3, len(labels)))
    for row, answer, texts in zip(counts, answers, references, strict=True):
        acceptable, predicted = [text.strip() for text in texts], answer.strip()
        label = predicted if predicted in acceptable else acceptable[0]
        row[1, numbers[label]] = 1
        if predicted in numbers:
            row[2, numbers[predicted]] = 1
            row[0, numbers[predicted]] = predicted == label
    return counts.reshape(len(answers), -1)
