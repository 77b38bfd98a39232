"""Scores through the package `evaluate` equal those of `measure`; ROUGE equals the package's own metric."""

from __future__ import annotations

import evaluate
import pytest

from lora_ft.evaluation.evaluate_metric import TaskMetric
from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.evaluate import Evaluate
from tests.lora_ft.evaluation.metrics.test_rouge import PREDICTIONS, REFERENCES


@pytest.mark.parametrize("name", ["rouge", "chrf"])
def test_batches_have_the_scores_of_measure(name: str) -> None:
    metric = TaskMetric(name)
    metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metric.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    expected = measure([name], PREDICTIONS, REFERENCES, Evaluate())
    assert metric.compute() == {name: score.value for name, score in expected.items()}


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_rouge_equals_the_metric_of_evaluate(use_stemmer: bool) -> None:
    try:
        metric = evaluate.load("rouge")
    except (OSError, ImportError) as error:
        pytest.skip(f"evaluate's rouge script is neither cached nor downloadable ({type(error).__name__})")
    rows = metric.compute(predictions=PREDICTIONS, references=REFERENCES, use_aggregator=False, use_stemmer=use_stemmer)
    scores = measure(["rouge"], PREDICTIONS, REFERENCES, Evaluate(use_stemmer=use_stemmer))
    for name in ("rouge1", "rouge2", "rougeL"):  # not rougeLsum, for which it does not split sentences
        assert scores[name].rows.tolist() == [100 * value for value in rows[name]]
