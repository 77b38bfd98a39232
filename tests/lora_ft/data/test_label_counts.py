"""Counts of labels by split, and warnings about rare and missing labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.validate import Validation, validate

MakeTask = Callable[..., Path]


@pytest.fixture
def validated(make_task: MakeTask) -> Callable[..., Validation]:
    """Validate a task with so many rows of each label in its three splits."""

    def run(counts: dict[str, dict[str, int]], **sections: Any) -> Validation:
        path = make_task(**{"labels": "auto", **sections})
        for split in ("train", "validation", "test"):
            rows = [
                {"text": f"{split} {label} {i}", "answer": label}
                for label, by_split in counts.items()
                for i in range(by_split.get(split, 0))
            ]
            (path.parent / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return validate(str(path))

    return run


def about_labels(report: Validation) -> list[str]:
    assert not report.errors
    return [warning for warning in report.warnings if "label" in warning]


def test_labels_are_counted_by_split_the_commonest_first(validated: Callable[..., Validation]) -> None:
    report = validated({"a": {"train": 2, "test": 1, "validation": 1}, "b": {"train": 5, "validation": 1, "test": 1}})
    assert report.labels == {
        "b": {"train": 5, "validation": 1, "test": 1},
        "a": {"train": 2, "validation": 1, "test": 1},
    }
    assert list(report.labels) == ["b", "a"] and not about_labels(report)


def test_labels_without_rows_are_reported(validated: Callable[..., Validation]) -> None:
    every = {"train": 3, "validation": 1, "test": 1}
    report = validated({"a": every, "b": {"train": 3, "test": 1}}, labels=["a", "b", "c"])
    assert "train: 1 of 3 labels have no rows and cannot be learned: 'c'" in report.warnings
    assert "validation: 2 of 3 labels have no rows and are not scored there: 'b', 'c'" in report.warnings


def test_two_spellings_of_a_label_are_reported(validated: Callable[..., Validation]) -> None:
    every = {"train": 3, "validation": 1, "test": 1}
    (warning,) = about_labels(validated({"Pos": every, "neg": every, "pos": every}))
    assert warning.startswith("the labels 'Pos', 'pos' differ only in case")


def test_imbalance_is_reported_unless_oversampled(validated: Callable[..., Validation]) -> None:
    counts = {"a": {"train": 30, "validation": 1, "test": 1}, "b": {"train": 3, "validation": 1, "test": 1}}
    (warning,) = about_labels(validated(counts))
    assert "30 training rows of 'a', 3 of 'b'; set data.oversample=true" in warning
    report = validated(counts, data={"oversample": True})
    assert not about_labels(report) and report.plan is not None and report.plan.steps_per_epoch == 60 // 4


def test_tasks_without_labels_have_no_counts(validated: Callable[..., Validation]) -> None:
    assert validated({"a": {"train": 3, "validation": 1, "test": 1}}, labels=None).labels == {}
