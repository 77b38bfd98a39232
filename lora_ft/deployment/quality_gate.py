"""The quality gate: the largest loss of score that a model with rounded weights may have on rows of its task.

Exact and rounded weights answer the same rows. The gate compares both scores row by row, so that the interval of the
difference reflects the rounding and not the choice of rows. An export or a bank is published only if the loss is small,
or if the user forces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.core.errors import GateError
from lora_ft.data.splits import Example
from lora_ft.evaluation.metrics import Estimate, Scored, difference, score
from lora_ft.tasks.schema import Task

MAX_DROP = 0.5  # points


@dataclass(frozen=True)
class QualityGate:
    """A limit on the loss of `evaluate.metric` on rows of a task.

    Attributes:
        task: Task whose metric and bootstrap settings apply.
        examples: Rows to answer.
        max_drop: Largest loss that passes, in points of a score from 0 to 100.
        force: Accept a larger loss, and record that it was forced.
    """

    task: Task
    examples: Sequence[Example]
    max_drop: float = MAX_DROP
    force: bool = False

    @property
    def prompts(self) -> list[str]:
        """Prompts to answer."""
        return [example.prompt for example in self.examples]

    def score(self, answers: Sequence[str]) -> Scored:
        """Return the score of answers to `prompts`."""
        settings = self.task.evaluate
        return score(settings.metric, answers, [example.references for example in self.examples], settings)

    def estimate(self, score: Scored) -> Estimate:
        """Return a score with its interval."""
        return score.estimate(**self._bootstrap)

    def difference(self, rounded: Scored, exact: Scored) -> Estimate:
        """Return the change of the score by rounding, with its paired interval."""
        return difference(rounded, exact, **self._bootstrap)

    def passes(self, change: Estimate) -> bool:
        """Return whether a change passes: its mean is small, and its interval includes zero or only small losses."""
        small = change.mean >= -self.max_drop
        return small and (change.high >= 0 or change.low >= -self.max_drop)

    def require(self, change: Estimate, subject: str, reference: str, remedy: str) -> None:
        """Raise GateError if a change is too large and not forced.

        Args:
            change: Difference between rounded and exact weights.
            subject: Name of the rounded weights, such as "precision w4".
            reference: Name of the exact weights, such as "fp32".
            remedy: Remedy of the error.
        """
        if not (self.force or self.passes(change)):
            raise GateError(
                f"{subject} loses too much quality: {self.task.evaluate.metric} changes by {change} against "
                f"{reference} on {len(self.examples)} rows (allowed: -{self.max_drop:g}); nothing was written",
                remedy,
            )

    def record(self, passed: bool) -> Mapping[str, Any]:
        """Return the entry `gate` of a manifest."""
        return {
            "metric": self.task.evaluate.metric,
            "rows": len(self.examples),
            "max_drop": self.max_drop,
            "passed": passed,
            "forced": self.force and not passed,
        }

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"seed": self.task.evaluate.seed, "resamples": self.task.evaluate.bootstrap}
