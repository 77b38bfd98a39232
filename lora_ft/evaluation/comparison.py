"""Answers of several models to the same rows, scored and compared row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lora_ft.evaluation.metrics import Estimate
from lora_ft.evaluation.metrics.statistics import Difference


@dataclass(frozen=True)
class Contender:
    """One model's answers, scored.

    Attributes:
        name: as the user called it.
        answers: [rows].
        scores: of all rows, by name.
        rows: [rows] of each score, 0 to 100.
        differences: from the first contender, by name; empty for the first one itself.
    """

    name: str
    answers: list[str]
    scores: dict[str, Estimate]
    rows: dict[str, np.ndarray]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        contenders: the first is what the others are compared with.
        prompts, references: of each row.
        how: what scores rest on, with their names.
        by: the score that rows are ordered by.
        order: indices of the rows, those that changed most by that score first.
        warnings: of runs whose own scores were taken in another way than here.
    """

    contenders: list[Contender]
    prompts: list[str]
    references: list[list[str]]
    how: dict[str, list[str]]
    by: str
    order: list[int]
    warnings: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """How to read the table."""
        several = "; p is not corrected for several models" if len(self.contenders) > 2 else ""
        return f"differences from {self.contenders[0].name}, paired by row; p by random swaps, two-sided{several}"

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """Score, model, value, difference and p of each score of each model."""
        found = []
        for score in self.contenders[0].scores:
            for one in self.contenders:
                change = one.differences.get(score)
                found.append(
                    (
                        score if one is self.contenders[0] else "",
                        one.name,
                        str(one.scores[score]),
                        change.estimate.signed if change else "",
                        f"{change.p:.3f}" if change else "",
                    )
                )
        return found

    def change(self, row: int, contender: Contender) -> float:
        """Points by which a row's score differs from the first contender's."""
        return float(contender.rows[self.by][row] - self.contenders[0].rows[self.by][row])
