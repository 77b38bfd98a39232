"""Answers of several models to the same rows, scored and compared row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from lora_ft.core.plain import plain_fields
from lora_ft.evaluation.metrics import Estimate
from lora_ft.evaluation.metrics.statistics import Difference
from lora_ft.tasks.schema import SplitName


@dataclass(frozen=True)
class Contender:
    """Answers and scores of one model.

    Attributes:
        name: Run, or file of answers, as the user named it.
        answers: [rows] answers.
        scores: Score of all rows, by name.
        rows: [rows] scores from 0 to 100, by name.
        differences: Difference from the first model, by name; empty for the first model.
    """

    name: str
    answers: list[str]
    scores: dict[str, Estimate]
    rows: dict[str, np.ndarray]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        columns: Names of the columns of `lines`.
        contenders: Models. All others are compared with the first.
        prompts: Prompt of each row.
        references: Acceptable answers of each row.
        how: Names of scores by their signature (how they were computed).
        by: Score that rows are ordered by.
        order: Indices of the rows, the most changed row first.
        split: Split of the runs, or None if all models are files of answers.
        warnings: Runs whose recorded scores were computed differently.
    """

    columns: ClassVar = ("score", "model", "0-100 [95 %]", "difference [95 %]", "p", "Holm")
    contenders: list[Contender]
    prompts: list[str]
    references: list[list[str]]
    how: dict[str, list[str]]
    by: str
    order: list[int]
    split: SplitName | None = None
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{score:<10} {name}: {' '.join(figures)}".rstrip() for score, name, *figures in self.lines()]
        return "\n".join([*rows, self.note, *(f"warning: {warning}" for warning in self.warnings)])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)

    @property
    def note(self) -> str:
        """Return the rows of the table of `lines`, and how to read it."""
        rows = f"{len(self.prompts):,} {self.split} rows" if self.split else f"{len(self.prompts):,} rows"
        tests = sum(len(model.differences) for model in self.contenders)
        several = f"; Holm: p corrected for {tests} tests" if tests > 1 else ""
        return (
            f"{rows}; differences from {self.contenders[0].name}, paired by row; p by random swaps, two-sided{several}"
        )

    def lines(self) -> list[tuple[str, ...]]:
        """Return score, model, value, difference, p and corrected p for each score of each model."""
        lines: list[tuple[str, ...]] = []
        for score in self.contenders[0].scores:
            for model in self.contenders:
                change = model.differences.get(score)
                lines.append(
                    (
                        score if model is self.contenders[0] else "",
                        model.name,
                        str(model.scores[score]),
                        change.estimate.signed if change else "",
                        f"{change.p:.3f}" if change else "",
                        f"{change.corrected:.3f}" if change else "",
                    )
                )
        return lines

    def change(self, row: int, contender: Contender) -> float:
        """Return the points by which a row's score differs from the first model's."""
        return float(contender.rows[self.by][row] - self.contenders[0].rows[self.by][row])
