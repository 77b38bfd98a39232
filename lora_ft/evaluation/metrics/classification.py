"""Answers that are labels: accuracy, macro-F1, and precision, recall and F1 of each label."""

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
    """How one label did, 0 to 100.

    Attributes:
        precision: share of its answers that are right; 0 where it was never answered.
        recall: share of its rows that were answered with it; 0 where it has none.
        f1: the harmonic mean of both.
        rows: how many are of this label.
        answers: how many were answered with it.
    """

    precision: float
    recall: float
    f1: float
    rows: int
    answers: int


def measure(answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> dict[str, Scored]:
    """Accuracy, and the mean F1 of the labels that rows have, each weighing the same whatever its rows.

    Of several references of a row the one that was answered is right, else the first.
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
    """The scores of each label."""
    hits, rows, said = _parts(answers, references, labels).sum(axis=0).reshape(3, len(labels)).astype(int).tolist()
    share = lambda part, whole: round(100 * part / whole, 2) if whole else 0.0  # noqa: E731
    return {
        label: LabelScore(share(h, s), share(h, r), share(2 * h, r + s), r, s)
        for label, h, r, s in zip(labels, hits, rows, said, strict=True)
    }


def _parts(answers: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """[rows, 3 * labels], 0 or 1: answered with a label rightly, being of it, answered with it."""
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
