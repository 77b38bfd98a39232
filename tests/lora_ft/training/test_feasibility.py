"""A task that this machine cannot train is refused by `validate`, and by `train` before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import InvalidTaskError, load_task
from lora_ft.train import train
from lora_ft.training import feasibility
from lora_ft.validate import validate

MakeTask = Callable[..., Path]
NO_VALIDATION = {"data": {"validation": None}}


def refused(path: Path, out: Path) -> dict[str, str]:
    """Return the problems that `validate` reports, by key. `train` must refuse the first one."""
    errors = validate(str(path)).errors
    if errors:
        with pytest.raises(UsageError) as caught:
            train(load_task(path), out)
        assert str(errors[0]) in str(caught.value)
        assert not out.exists()
    return {error.key: error.problem for error in errors}


@pytest.mark.parametrize(
    ("sections", "key", "message"),
    [
        ({"train": {"early_stopping_patience": 2}} | NO_VALIDATION, "train.early_stopping_patience", "no validation"),
        ({"train": {"learning_rate": 1e-9, "lr_scheduler_type": "polynomial"}}, "train.learning_rate", "1e-07"),
        ({"lora": {"r": 33, "init_lora_weights": "pissa"}}, "lora.r", "requires 33 components"),
        ({"lora": {"r": 40, "init_lora_weights": "olora"}}, "lora.r", "requires 40 components"),
        ({"lora": {"r": 20, "init_lora_weights": "eva"}}, "lora.r", "requires 40 components"),
        ({"lora": {"rank_pattern": {"v": 99}, "init_lora_weights": "pissa"}}, "lora.r", "requires 99 components"),
        ({"train": {"metric_for_best_model": "bertscore"}}, "train.metric_for_best_model", "bertscore_model"),
        ({"evaluate": {"metrics": ["meteor"], "language": "de"}}, "evaluate.metrics", "English"),
        ({"evaluate": {"json_schema": "gone.json"}}, "evaluate.json_schema", "does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_infeasible_task_is_refused_by_validate_and_train(
    make_task: MakeTask, tmp_path: Path, sections: dict[str, Any], key: str, message: str
) -> None:
    problems = refused(make_task(**sections), tmp_path / "run")
    assert list(problems) == [key] and message in problems[key]


def test_missing_package_is_reported(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility, "find_spec", lambda name: None)
    path = make_task(train={"report_to": ["wandb"]})
    assert "pip install wandb" in refused(path, tmp_path / "run")["train.report_to"]


def test_compiling_requires_a_compiler(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility.shutil, "which", lambda name: None)
    monkeypatch.setattr(feasibility, "training_device", lambda: "cpu")
    assert "C++ compiler" in refused(make_task(train={"compile": "on"}), tmp_path / "run")["train.compile"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{"$ref": "http://example.org/other.json"}', "keep the whole schema in one file"),
        ('{"$ref": "#"}', "keep the whole schema in one file"),
        ('{"type": "nothing"}', "is not a valid JSON schema"),
        ("[]", "missing or damaged"),
    ],
)
def test_unusable_json_schema_is_refused(make_task: MakeTask, tmp_path: Path, schema: str, message: str) -> None:
    path = make_task(evaluate={"json_schema": "schema.json"})
    (path.parent / "schema.json").write_text(schema, encoding="utf-8")
    assert message in str(validate(str(path)).errors)


def test_minimum_lengths_and_beams_that_exclude_sampling_are_refused_by_the_schema(make_task: MakeTask) -> None:
    for generate, message in (
        ({"min_new_tokens": 25}, "more than lengths.target = 24"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "more than generate.max_new_tokens = 8"),
        ({"do_sample": True, "num_beams": 2}, "exclude each other"),
    ):
        with pytest.raises(InvalidTaskError, match=message):
            load_task(make_task(generate=generate))


def test_validate_warns_of_missing_validation_rows(make_task: MakeTask) -> None:
    warnings = validate(str(make_task(**NO_VALIDATION))).warnings
    assert any("no validation rows" in warning and "metric_for_best_model" in warning for warning in warnings)
