"""Scores through the package `evaluate` equal those of `measure`; ROUGE equals the package's own metric."""

from __future__ import annotations

import evaluate
import pytest

from lora_ft.evaluation.evaluate_metric import TaskMetric
from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.schema import Evaluate
from tests.lora_ft.evaluation.metrics.test_rouge import PREDICTIONS, REFERENCES


@pytest.mark.parametrize("name", ["rouge", "chrf"])
def test_batches_score_as_measure_does(name: str) -> None:
    metric = TaskMetric(name)
    metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metric.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    expected = measure([name], PREDICTIONS, REFERENCES, Evaluate())
    assert metric.compute() == {score: found.value for score, found in expected.items()}


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_rouge_equals_the_metric_of_evaluate(use_stemmer: bool) -> None:
    try:
        metric = evaluate.load("rouge")
    except (OSError, ImportError) as error:
        pytest.skip(f"the script of evaluate's rouge is not cached and cannot be downloaded ({type(error).__name__})")
    rows = metric.compute(predictions=PREDICTIONS, references=REFERENCES, use_aggregator=False, use_stemmer=use_stemmer)
    scores = measure(["rouge"], PREDICTIONS, REFERENCES, Evaluate(use_stemmer=use_stemmer))
    for name in ("rouge1", "rouge2", "rougeL"):  # it does not split sentences for rougeLsum
        assert scores[name].rows.tolist() == [100 * value for value in rows[name]]
