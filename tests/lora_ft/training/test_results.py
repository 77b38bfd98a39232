"""The measurements of a run whose validation is not a number, and the hardware that its record names."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from lora_ft.core.progress import Silent
from lora_ft.training.results import finite_score, hardware_name
from lora_ft.training.trainer import ProgressReporter


@pytest.mark.parametrize(("score", "expected"), [(1.5, 1.5), (None, None), (math.inf, None), (-math.inf, None)])
def test_the_best_of_no_score_is_none(score: float | None, expected: float | None) -> None:
    assert finite_score(score) == expected


def test_a_validation_that_is_not_a_number_is_warned_of() -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    reporter = ProgressReporter(Notes(), lambda: (0, 0, 0), lambda entry: None)
    arguments: Any = SimpleNamespace(metric_for_best_model="loss")
    for loss in (0.5, math.nan):
        reporter.on_evaluate(arguments, TrainerState(), TrainerControl(), {"eval_loss": loss})
    assert [note.startswith("warning") for note in notes] == [False, False, True]


def test_a_step_counts_the_rows_of_its_batch() -> None:
    counts = [(0, 0, 0)]
    reporter = ProgressReporter(Silent(), lambda: counts[-1], lambda entry: None)
    arguments: Any = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=2)
    for rows in (8, 11):
        reporter.on_step_begin(arguments, TrainerState(), TrainerControl())
        counts.append((0, 0, rows))
        reporter.on_step_end(arguments, TrainerState(), TrainerControl())
    assert [samples for samples, _ in reporter.steps] == [16, 6]


@pytest.mark.parametrize(("variable", "expected"), [(None, 4), ("2", 2), ("1", 1), ("16", 4)])
def test_recorded_cores_are_those_that_the_threads_may_use(
    variable: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lora_ft.core.hardware", "lora_ft.training.results"):
        monkeypatch.setattr(f"{module}.allowed_cpus", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    plan: Any = SimpleNamespace(device="cpu")
    assert hardware_name(plan).startswith(f"{expected} core")
