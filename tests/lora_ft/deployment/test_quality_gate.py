"""The quality gate passes small losses, refuses large ones, and records both in the manifest."""

from __future__ import annotations

import pytest

from lora_ft.core.errors import GateError
from lora_ft.data.splits import Example
from lora_ft.deployment.quality_gate import QualityGate
from lora_ft.evaluation.metrics import Estimate
from lora_ft.tasks.schema import Task

ROWS = [("say: a", "the cat sat"), ("say: b", "a dog ran home")]


def gate(max_drop: float = 0.5, *, force: bool = False) -> QualityGate:
    task = Task.model_validate(
        {"name": "tiny", "base": "offline", "prompt": "say: {text}", "data": {"train": "a.jsonl", "target": "answer"}}
    )
    examples = [Example(prompt=prompt, target=target, references=(target,), row={}) for prompt, target in ROWS]
    return QualityGate(task, examples, max_drop, force)


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (0.0, -0.3, 0.3, True),
        (0.2, -2.0, 2.0, True),  # no significant loss
        (-0.4, -1.5, 0.7, True),
        (-0.3, -0.4, -0.1, True),  # a significant loss that is certainly small
        (-0.4, -0.9, -0.1, False),  # a significant loss that may be large
        (-0.6, -1.5, 0.3, False),
        (-6.0, -7.0, -5.0, False),
    ],
)
def test_small_change_passes(mean: float, low: float, high: float, expected: bool) -> None:
    assert gate().passes(Estimate(mean, low, high)) is expected


def test_scores_and_differences_are_paired() -> None:
    exact, rounded = (gate().score(texts) for texts in (["the cat sat", "a dog ran home"], ["the cat sat", "a cat"]))
    change = gate().difference(rounded, exact)
    assert gate().estimate(exact).mean == 100 and change.mean == rounded.value - 100 < 0
    assert gate().difference(exact, exact) == Estimate(0.0, 0.0, 0.0)
    assert gate().prompts == ["say: a", "say: b"]


def test_large_loss_is_refused_unless_forced() -> None:
    loss = Estimate(-6.0, -7.0, -5.0)
    with pytest.raises(GateError, match=r"w4 loses too much quality: rouge1 changes by -6.0 .* against fp32 on 2 rows"):
        gate().require(loss, "w4", "fp32", "choose another")
    gate(10).require(loss, "w4", "fp32", "")
    gate(force=True).require(loss, "w4", "fp32", "")
    assert gate(force=True).record(False) == {
        "metric": "rouge1",
        "rows": 2,
        "max_drop": 0.5,
        "passed": False,
        "forced": True,
    }
