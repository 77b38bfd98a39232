"""This project's scores as a metric of the package `evaluate`.

Training loops and evaluators written for `evaluate` collect answers batch by batch (`add_batch`) and ask for one
number at the end (`compute`). `TaskMetric` lets them score exactly as `lora-ft evaluate` does, without downloading a
metric script. The verbs of this project call `lora_ft.evaluation.metrics` directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.schema import Evaluate


class TaskMetric(evaluate.Metric):
    """A metric of `lora_ft.tasks.metric_names.GIVES`, such as "rouge", for several references per prediction.

    Args:
        name: Name of the metric.
        settings: Language, stemmer and stop words, as in the `evaluate` section of a task.
    """

    def __init__(self, name: str, settings: Evaluate | None = None) -> None:
        super().__init__(config_name=name, keep_in_memory=True)
        self._settings = settings or Evaluate()

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{self.config_name} as lora-ft computes it, 0 to 100",
            citation="",
            inputs_description="predictions: texts; references: for each prediction a list of acceptable texts",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = measure([str(self.config_name)], predictions, references, self._settings)
        return {name: score.value for name, score in scores.items()}
