"""This project's scores as a metric of the package `evaluate`.

Training loops and evaluators written for `evaluate` collect answers by batch (`add_batch`) and compute scores at the
end (`compute`). `TaskMetric` lets them score exactly as `lora-ft evaluate` does, without downloading a metric script.
Code of this project calls `lora_ft.evaluation.metrics` directly, since `evaluate` copies all texts through Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.evaluate import Evaluate


class TaskMetric(evaluate.Metric):
    """A metric of `lora_ft.tasks.metric_names.SCORES_OF`, such as "rouge", for several references per prediction.

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
            inputs_description="predictions: texts; references: a list of acceptable texts for each prediction",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = measure([str(self.config_name)], predictions, references, self._settings)
        return {name: score.value for name, score in scores.items()}
