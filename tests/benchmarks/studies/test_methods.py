"""The comparison of methods: the same rows and steps for each, and no method is measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.readme import methods as table
from benchmarks.studies import methods
from benchmarks.studies.methods import METHODS, measure
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Silent
from lora_ft.tasks.files import load_task
from tests.conftest import write_task

TWO_METHODS = {name: METHODS[name] for name in ("LoRA, tiny", "full")}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_task(tmp_path_factory.mktemp("methods"), tiny_base, train={"max_steps": 2})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_valid_task(name: str, task: Path) -> None:
    plain, changed = load_task(task), load_task(task, METHODS[name])
    assert changed.method == ("full" if name == "full" else "lora")
    assert changed.train.max_steps == plain.train.max_steps and changed.data == plain.data


def test_methods_are_measured_once(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", TWO_METHODS)
    results = tmp_path / "methods.json"
    measure(task, [], tmp_path / "runs", results, ["LoRA, tiny"], Silent())
    first = json.loads(results.read_text())
    assert list(first["methods"]) == ["LoRA, tiny"] and first["base"]["rouge1"]["mean"] >= 0
    measure(task, [], tmp_path / "runs", results, [], Silent())
    figures = json.loads(results.read_text())
    assert figures["methods"]["LoRA, tiny"] == first["methods"]["LoRA, tiny"]
    full = figures["methods"]["full"]
    assert (
        full["lora"] is None and full["trainable_parameters"] > figures["methods"]["LoRA, tiny"]["trainable_parameters"]
    )
    assert full["steps"] == 2 and full["megabytes"] > 0
    assert not list((tmp_path / "runs").iterdir())
    shown = table(figures)
    assert "| full | " in shown and "6 test rows" in shown and "| *the base* | " in shown
    monkeypatch.setattr(methods, "train", None)  # training again would fail
    measure(task, [], tmp_path / "runs", results, [], Silent())


def test_results_of_another_task_are_refused(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", {})
    measure(task, [], tmp_path / "runs", tmp_path / "methods.json", [], Silent())
    with pytest.raises(UsageError, match="has figures of another task or other rows"):
        measure(task, ["train.max_steps=3"], tmp_path / "runs", tmp_path / "methods.json", [], Silent())


def test_unknown_method_is_refused(task: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'lora' does not exist; choose one of LoRA, tiny, LoRA"):
        measure(task, [], tmp_path / "runs", tmp_path / "methods.json", ["lora"], Silent())
