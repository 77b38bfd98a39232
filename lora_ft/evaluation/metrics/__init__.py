"""Scores of answers against references, 0 to 100. One file a metric, found by its name; none needs the network.

A metric is a module with `measure(answers, references, settings) -> {name of a score: Scored}` and a line in `GIVES`.
Where it needs what may be absent, it also has `require(settings)`, which raises UsageError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lora_ft.evaluation.metrics.statistics import Estimate, Scored, difference, estimate
from lora_ft.tasks.metric_names import GIVES

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate


__all__ = [
    "Estimate",
    "Scored",
    "difference",
    "estimate",
    "measure",
    "require",
    "score",
]


def measure(
    names: Iterable[str], answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate
) -> dict[str, Scored]:
    """Scores by name, in the order of the metrics.

    Args:
        names: metrics of `GIVES`.
        answers: [rows].
        references: acceptable texts of each row, at least one.
        settings: of a task: language, stemmer, stop words.

    Raises:
        UsageError: a metric's package, data or model is not here.
    """
    found: dict[str, Scored] = {}
    for name in names:
        module = import_module(f"{__name__}.{name.lower()}")
        found |= module.measure(answers, references, settings)
    return found


def require(names: Iterable[str], settings: Evaluate) -> None:
    """Raise UsageError where a metric's package, data or settings are not here, before anything is generated.

    Args:
        names: metrics or scores.
        settings: of a task.
    """
    for name in names:
        metric = name if name in GIVES else metric_of(name)
        module = import_module(f"{__name__}.{metric.lower()}")
        if check := getattr(module, "require", None):
            check(settings)


def metric_of(score: str) -> str:
    """Return the metric that a score of `SCORES` is part of."""
    return next(metric for metric, scores in GIVES.items() if score in scores)


def score(name: str, answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> Scored:
    """One score of `SCORES`; arguments are those of `measure`."""
    return measure([metric_of(name)], answers, references, settings)[name]
