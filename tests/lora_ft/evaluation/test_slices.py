"""Slices show where a model scores high and low, and never split rows too finely."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_ft.evaluation.slices import Slice, columns_to_slice, slices


def answer(prompt: str, reference: str, score: float, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "references": [reference], "output": "", "rouge1": score, **more}


def by(parts: list[Slice], name: str) -> dict[str, Slice]:
    return {part.value: part for part in parts if part.by == name}


def test_lengths_are_split_into_thirds() -> None:
    rng = np.random.default_rng(0)
    rows = [answer("w " * (i + 1), "x", (90 if i < 10 else 20) + rng.normal()) for i in reversed(range(30))]
    parts = by(slices(rows, "rouge1", seed=0, resamples=200), "prompt words")
    assert list(parts) == ["up to 11", "12 to 20", "over 20"]
    assert [part.rows for part in parts.values()] == [11, 9, 10]
    assert parts["up to 11"].differs and parts["up to 11"].score.mean > 80 and parts["over 20"].differs


def test_equal_rows_have_no_slices() -> None:
    assert slices([answer("same words", "x", 50.0) for _ in range(40)], "rouge1", seed=0, resamples=100) == []
    assert slices([], "rouge1", seed=0, resamples=100) == []


def test_rows_without_a_score_are_in_no_slice() -> None:
    rows = [answer("w " * (i + 1), "x", float(i)) for i in range(30)]
    parts = slices([*rows, answer("w", "x", 0.0) | {"rouge1": None}], "rouge1", seed=0, resamples=100)
    assert parts == slices(rows, "rouge1", seed=0, resamples=100)


def test_labels_scripts_overlap_cuts_and_columns_are_properties() -> None:
    rows = [
        answer(
            "w",
            "да" if i % 2 else "yes",
            float(i),
            overlap="near" if i < 6 else "none",
            cut=i < 5,
            source_cut=i >= 15,
            columns={"topic": "a" if i < 10 else "b"},
        )
        for i in range(20)
    ]
    parts = slices(rows, "rouge1", seed=0, resamples=100)
    assert {part.by: part.rows for part in parts} == {
        "prompt": 15,
        "answer": 15,
        "script": 10,
        "reference": 10,
        "training rows": 14,
        "column topic": 10,
    }
    assert set(by(parts, "script")) == {"Latin", "Cyrillic"}
    assert set(by(parts, "training rows")) == {"nearly a training row", "new"}
    assert by(parts, "column topic")["b"].score.mean == 14.5


def test_slices_of_fewer_than_five_rows_are_left_out() -> None:
    rows = [answer("w", name, 1.0) for name in ["a"] * 5 + ["b"] * 5 + ["c"] * 4]
    assert set(by(slices(rows, "rouge1", seed=0, resamples=100), "reference")) == {"a", "b"}
    assert slices(rows[:9], "rouge1", seed=0, resamples=100) == []


def test_columns_with_few_short_values_are_sliced() -> None:
    rows = [{"text": f"text {i}", "topic": i % 3, "ok": True, "long": "x" * 41, "answer": i % 2} for i in range(60)]
    assert columns_to_slice(rows, "answer") == ["topic"]
    assert columns_to_slice([*rows, {"text": "t"}], "answer") == [] and columns_to_slice([], "answer") == []
