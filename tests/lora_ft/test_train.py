"""Training: what a run holds, that it learns, that it resumes exactly, and that it stops when it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.errors import LoraFtError, UsageError
from lora_ft.runs import Run, unfinished
from lora_ft.task import load_task
from lora_ft.train import train


def adapter(run: Run | Path) -> dict[str, torch.Tensor]:
    return load_file((run.adapter if isinstance(run, Run) else run) / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_holds_what_it_should(make_task: Callable[..., Path], tmp_path: Path, tiny_base: Path) -> None:
    run = train(load_task(make_task()), tmp_path / "run")
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"adapter", "task.yaml", "metrics.json", "log.jsonl", "README.md"}
    assert {path.suffix for path in run.adapter.iterdir()} <= {".json", ".safetensors", ".md"}
    assert not unfinished(run.folder).exists()
    assert load_task(run.folder / "task.yaml") == run.task
    assert run.metrics["steps"] == 12 and run.metrics["base"]["vocab_size"] == 80
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_base)
