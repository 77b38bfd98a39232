"""Training starts from an existing adapter: the task takes over its tensors, ranks and layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.models.bases import load_tokenizer
from lora_ft.models.start_from import with_start_adapter
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from lora_ft.validate import validate
from tests.lora_ft.test_foreign_adapters import WEIGHTS, configure, make

STILL = {"num_train_epochs": 1, "learning_rate": 1e-12, "metric_for_best_model": "loss"}


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q", "v"], "rank_pattern": {"v": 2}},
        {"target_modules": r".*decoder.*SelfAttention\.(q|k)", "use_rslora": True},
    ],
)
def test_training_starts_from_the_tensors_of_the_adapter(
    make_task: Callable[..., Path], tiny_base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapter = make(tiny_base, tmp_path / "adapter", **config)
    task = make_task(train=STILL)
    assert lora_ft(["train", str(task), "--from", str(adapter), "--out", str(tmp_path / "run")]) == 0
    run = Run(tmp_path / "run")
    start, trained = load_file(adapter / WEIGHTS), load_file(run.adapter / WEIGHTS)
    assert start.keys() == trained.keys()
    for name, tensor in start.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)
    assert (run.task.lora.r, run.task.lora.lora_alpha) == (4, 6)
    assert run.task.lora.start_from == str(adapter)
    assert (
        run.metrics["start_from"]["adapter"] == str(adapter) and len(run.metrics["start_from"]["weights_sha256"]) == 64
    )
    card = (run.folder / "README.md").read_text()
    assert "started from" in card and str(tmp_path) not in card


def test_training_starts_from_a_run(make_task: Callable[..., Path], tiny_run: Run, tmp_path: Path) -> None:
    task = load_task(make_task(train=STILL | {"learning_rate": 0.01}), [f"lora.start_from={tiny_run.folder}"])
    run = train(task, tmp_path / "run")
    start, trained = load_file(tiny_run.adapter / WEIGHTS), load_file(run.adapter / WEIGHTS)
    assert any(not torch.equal(trained[name], tensor) for name, tensor in start.items())
    assert run.task.lora.target_modules == ["q", "v"]


def test_parts_that_a_task_cannot_express_are_refused(
    make_task: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    adapter = make(tiny_base, tmp_path / "adapter", target_modules=["q"], modules_to_save=["lm_head"])
    with pytest.raises(UsageError, match=r"has modules_to_save, which a task does not support \(got lm_head\)"):
        with_start_adapter(load_task(make_task(), [f"lora.start_from={adapter}"]))
    configure(adapter, modules_to_save=None, init_lora_weights="pissa")
    with pytest.raises(UsageError, match="was trained on a base that init_lora_weights pissa changed"):
        with_start_adapter(load_task(make_task(), [f"lora.start_from={adapter}"]))
    configure(adapter, init_lora_weights=True, lora_alpha=1.5)
    with pytest.raises(UsageError, match=r"a task does not support: lora_alpha"):
        with_start_adapter(load_task(make_task(), [f"lora.start_from={adapter}"]))


def test_adapter_with_more_tokens_than_the_base_is_refused(
    make_task: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    adapter = make(tiny_base, tmp_path / "adapter", target_modules=["q"])
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.save(adapter / "tokenizer.json")
    assert with_start_adapter(load_task(make_task(), [f"lora.start_from={adapter}"])).lora.r == 4
    tokenizer.add(["<new>"])
    tokenizer.save(adapter / "tokenizer.json")
    with pytest.raises(UsageError, match=r"has more tokens than the base .*; merge it, and train a new adapter"):
        with_start_adapter(load_task(make_task(), [f"lora.start_from={adapter}"]))


def test_adapter_of_another_base_is_refused(make_task: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    adapter = make(tiny_base, tmp_path / "adapter", target_modules=["q"])
    configure(adapter, r=8)
    [error] = validate(str(make_task()), [f"lora.start_from={json.dumps(str(adapter))}"]).errors
    assert error.key == "lora.start_from" and "has shape 4 x 32" in error.problem
    with pytest.raises(LoraFtError, match="has shape 4 x 32"):
        train(load_task(make_task(), [f"lora.start_from={json.dumps(str(adapter))}"]), tmp_path / "run")


def test_validate_plans_with_the_ranks_and_layers_of_the_adapter(
    make_task: Callable[..., Path], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make(tiny_base, tmp_path / "adapter", target_modules=["q"])
    path, start = str(make_task(train=STILL)), f"lora.start_from={json.dumps(str(adapter))}"
    report = validate(path, [start])
    assert report.errors == [] and report.plan is not None
    assert report.plan.trainable == train(load_task(path, [start]), tmp_path / "run").metrics["trainable_parameters"]
    (adapter / WEIGHTS).unlink()
    [error] = validate(path, [start]).errors
    assert error.key == "lora.start_from" and WEIGHTS in error.problem
    [error] = validate(path, [f"lora.start_from={json.dumps(str(tmp_path / 'gone'))}"]).errors
    assert error.key == "lora.start_from" and "neither a run nor an adapter" in error.problem
    capsys.readouterr()
    assert lora_ft(["validate", path, "--from", str(tmp_path / "gone")]) == 2
    assert "neither a run nor an adapter" in capsys.readouterr().out
