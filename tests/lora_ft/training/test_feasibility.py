"""What this machine and these rows cannot do is refused by `validate`, and by `train` before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import TaskFaults, load_task
from lora_ft.train import train
from lora_ft.training import feasibility
from lora_ft.validate import validate

MakeTask = Callable[..., Path]
NO_VALIDATION = {"data": {"validation": None}}


def refused(path: Path, out: Path) -> dict[str, str]:
    """The faults that `validate` finds; `train` refuses the first of them."""
    faults = validate(str(path)).faults
    if faults:
        with pytest.raises(UsageError) as caught:
            train(load_task(path), out)
        assert str(faults[0]) in str(caught.value)
        assert not out.exists()
    return {fault.key: fault.problem for fault in faults}


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        ({"train": {"early_stopping_patience": 2}} | NO_VALIDATION, "train.early_stopping_patience", "no validation"),
        ({"train": {"learning_rate": 1e-9, "lr_scheduler_type": "polynomial"}}, "train.learning_rate", "1e-07"),
        ({"lora": {"r": 33, "init_lora_weights": "pissa"}}, "lora.r", "needs 33 components"),
        ({"lora": {"r": 40, "init_lora_weights": "olora"}}, "lora.r", "needs 40 components"),
        ({"lora": {"r": 20, "init_lora_weights": "eva"}}, "lora.r", "needs 40 components"),
        ({"lora": {"rank_pattern": {"v": 99}, "init_lora_weights": "pissa"}}, "lora.r", "needs 99 components"),
        ({"train": {"metric_for_best_model": "bertscore"}}, "train.metric_for_best_model", "bertscore_model"),
        ({"evaluate": {"metrics": ["meteor"], "language": "de"}}, "evaluate.metrics", "English"),
        ({"evaluate": {"json_schema": "gone.json"}}, "evaluate.json_schema", "no schema"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_a_fault_of_both(
    make_task: MakeTask, tmp_path: Path, sections: dict[str, Any], key: str, words: str
) -> None:
    found = refused(make_task(**sections), tmp_path / "run")
    assert list(found) == [key] and words in found[key]


def test_packages_are_looked_for(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility, "find_spec", lambda name: None)
    path = make_task(train={"report_to": ["wandb"]})
    assert "pip install wandb" in refused(path, tmp_path / "run")["train.report_to"]


def test_compiling_needs_a_compiler(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility.shutil, "which", lambda name: None)
    monkeypatch.setattr(feasibility, "training_device", lambda: "cpu")
    assert "C++ compiler" in refused(make_task(train={"compile": "on"}), tmp_path / "run")["train.compile"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"$ref": "http://example.org/other.json"}', "keep all of it in one file"),
        ('{"$ref": "#"}', "keep all of it in one file"),
        ('{"type": "nothing"}', "is no JSON schema"),
        ("[]", "missing or damaged"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused(make_task: MakeTask, tmp_path: Path, schema: str, words: str) -> None:
    path = make_task(evaluate={"json_schema": "schema.json"})
    (path.parent / "schema.json").write_text(schema, encoding="utf-8")
    assert words in str(validate(str(path)).faults)


def test_minimum_lengths_and_beams_that_exclude_sampling_are_refused_by_the_schema(make_task: MakeTask) -> None:
    for generate, words in (
        ({"min_new_tokens": 25}, "more than lengths.target = 24"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "more than generate.max_new_tokens = 8"),
        ({"do_sample": True, "num_beams": 2}, "exclude each other"),
    ):
        with pytest.raises(TaskFaults, match=words):
            load_task(make_task(generate=generate))


def test_without_validation_rows_it_is_said_that_nothing_is_chosen(make_task: MakeTask) -> None:
    warnings = validate(str(make_task(**NO_VALIDATION))).warnings
    assert any("no validation rows" in one and "metric_for_best_model" in one for one in warnings)
