"""Compiled training of batches of many shapes gives the same adapter, except for rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lora_ft.tasks.files import load_task
from lora_ft.train import train


@pytest.mark.slow
def test_compiled_run_trains_the_same_adapter_as_an_uncompiled_run(
    make_task: Callable[..., Path], tmp_path: Path
) -> None:
    plain = train(load_task(make_task()), tmp_path / "plain")
    compiled = train(load_task(make_task(train={"compile": "on"})), tmp_path / "compiled")
    assert compiled.metrics["compiled"] and not plain.metrics["compiled"]
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (compiled, plain))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-6)) < 1e-2
