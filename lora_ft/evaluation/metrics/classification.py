"""Scores of answers that are labels: accuracy, macro-F1, and precision, recall and F1 of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.evaluation.metrics.statistics import Scored

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label, 0 to 100.

    Attributes:
        precision: Share of answers with this label that are right; 0 if there are none.
        recall: Share of rows of this label that were answered with it; 0 if there are none.
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
    """Return accuracy, and the mean F1 of the labels that occur in rows, with equal weight for each label.

    If a row has several references, the right label is the one that was answered, or else the first.
    """
    labels = sorted({text.strip() for several in references for text in several})
    parts = _parts(answers, references, labels)
    right = 100.0 * parts[:, : len(labels)].sum(axis=1)

    def macro_f1(sums: np.ndarray) -> float:
        hits, rows, said = sums.reshape(3, len(labels))
        occurs = rows > 0
        return float(100 * np.mean(2 * hits[occurs] / (rows + said)[occurs]))

    return {"accuracy": Scored.mean(right), "macro_f1": Scored(right, parts, macro_f1)}


def by_label(
    answers: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, LabelScore]:
    """Return the scores of each label."""
    hits, rows, said = _parts(answers, references, labels).sum(axis=0).reshape(3, len(labels)).astype(int).tolist()
    share = lambda part, whole: round(100 * part / whole, 2) if whole else 0.0  # noqa: E731
    return {
        label: LabelScore(share(h, s), share(h, r), share(2 * h, r + s), r, s)
        for label, h, r, s in zip(labels, hits, rows, said, strict=True)
    }


def _parts(answers: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Return [rows, 3 * labels] of 0 or 1: correctly answered with a label, row of the label, answered with it."""
    numbers = {label: number for number, label in enumerate(labels)}
    parts = np.zeros((len(answers), 3, len(labels)))
    for row, answer, several in zip(parts, answers, references, strict=True):
        acceptable, said = [text.strip() for text in several], answer.strip()
        right = said if said in acceptable else acceptable[0]
        row[1, numbers[right]] = 1
        if said in numbers:
            row[2, numbers[said]] = 1
            row[0, numbers[said]] = said == right
    return parts.reshape(len(answers), -1)
