"""Scores of answers against references, from 0 to 100. Each metric is a module of its name.

A metric has a function `measure(answers, references, settings) -> {name of a score: Scored}` and a line in `SCORES_OF`.
The metrics of `FROM_SOURCE` have a fourth argument, `sources`.
If it depends on an optional package or file, it also has `require(settings)`, which raises UsageError. No metric uses
the network, except for `judge`, and models by a name on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lora_ft.core.errors import UsageError
from lora_ft.evaluation.metrics.statistics import Estimate, Scored, difference, estimate
from lora_ft.tasks.metric_names import FROM_SOURCE, SCORES_OF

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate


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
    names: Iterable[str],
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    settings: Evaluate,
    sources: Sequence[str] | None = None,
) -> dict[str, Scored]:
    """Return scores by name, in the order of the metrics.

    Args:
        names: Metrics of `SCORES_OF`.
        answers: [rows] answers.
        references: [rows] acceptable texts, at least one for each row.
        settings: Language, stemmer and stop words of a task.
        sources: [rows] texts that the answers were written from, for the metrics of `FROM_SOURCE`.

    Raises:
        UsageError: A metric's package, data or model is missing, or it needs sources and there are none.
    """
    scores: dict[str, Scored] = {}
    for name in names:
        module = import_module(f"{__name__}.{name.lower()}")
        if name not in FROM_SOURCE:
            scores |= module.measure(answers, references, settings)
        elif sources is None:
            raise UsageError(f"{name} needs the sources of the answers", "pass sources, or leave the metric out")
        else:
            scores |= module.measure(answers, references, settings, sources)
    return scores


def require(names: Iterable[str], settings: Evaluate) -> None:
    """Raise UsageError if a metric's package, data or settings are missing, before anything is generated.

    Args:
        names: Metrics or scores.
        settings: Settings of a task.
    """
    for name in names:
        metric = name if name in SCORES_OF else metric_of(name)
        module = import_module(f"{__name__}.{metric.lower()}")
        if check := getattr(module, "require", None):
            check(settings)


def metric_of(score: str) -> str:
    """Return the metric that computes a score of `SCORES`."""
    return next(metric for metric, scores in SCORES_OF.items() if score in scores)


def score(name: str, answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate) -> Scored:
    """Return one score of `SCORES`. Arguments are those of `measure`."""
    return measure([metric_of(name)], answers, references, settings)[name]
