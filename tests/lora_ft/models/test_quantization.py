"""Quantized bases are refused on unsupported machines, and loaded with the settings that bitsandbytes needs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from lora_ft.core.errors import UsageError
from lora_ft.merge import merge
from lora_ft.models import quantization
from lora_ft.models.bases import load_model
from lora_ft.models.quantization import load_quantized
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.validate import validate

MakeTask = Callable[..., Path]


@pytest.fixture
def load_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Simulate a GPU and bitsandbytes without quantizing, and return the options of each from_pretrained call."""
    calls: list[dict[str, Any]] = []
    original = AutoModelForSeq2SeqLM.from_pretrained

    def from_pretrained(folder: Path, **options: Any) -> Any:
        calls.append(dict(options))
        plain = {name: options[name] for name in options if name not in ("quantization_config", "device_map")}
        return original(folder, **plain)

    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(quantization, "require_quantization", lambda kind: None)
    monkeypatch.setattr("lora_ft.training.plan.require_quantization", lambda kind: None)
    version = "importlib.metadata.version"
    installed = __import__("importlib.metadata").metadata.version
    monkeypatch.setattr(version, lambda name: "0.49.0" if name == "bitsandbytes" else installed(name))
    return calls


def test_quantization_without_a_gpu_is_refused(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = make_task(lora={"quantization": "4bit"})
    message = r"lora\.quantization 4bit needs an NVIDIA GPU.*leave out lora\.quantization"
    with pytest.raises(UsageError, match=message):
        train(load_task(path), tmp_path / "run")
    assert not (tmp_path / "run.unfinished").exists()
    assert "needs an NVIDIA GPU" in str(validate(str(path)).errors[0])
    with pytest.raises(UsageError, match=message):
        load_quantized(tmp_path, "4bit")


def test_quantization_without_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"8bit needs bitsandbytes, which is not installed; pip install 'lora-ft\[quantization\]'"
    ):
        quantization.require_quantization("8bit")


@pytest.mark.parametrize(("bf16", "computes_in"), [(True, torch.bfloat16), (False, torch.float32)])
def test_4bit_is_nf4_and_never_computes_in_fp16(
    bf16: bool,
    computes_in: torch.dtype,
    load_calls: list[dict[str, Any]],
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: bf16)
    model = load_quantized(tiny_base, "4bit", dropout=0.0, device=1)
    config = load_calls[0]["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == computes_in
    assert load_calls[0]["device_map"] == {"": 1} and load_calls[0]["dropout_rate"] == 0.0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_8bit_is_requested(load_calls: list[dict[str, Any]], tiny_base: Path) -> None:
    load_quantized(tiny_base, "8bit")
    assert load_calls[0]["quantization_config"].load_in_8bit
    assert not logging.getLogger("bitsandbytes.autograd._functions").isEnabledFor(logging.WARNING)


def test_adapter_of_a_quantized_base_is_merged_into_the_float32_base(
    load_calls: list[dict[str, Any]], make_task: MakeTask, tmp_path: Path, tiny_base: Path
) -> None:
    settings = {"max_steps": 2, "metric_for_best_model": "loss", "compile": "auto"}
    task: Task = load_task(make_task(lora={"quantization": "8bit"}, train=settings))
    run = train(task, tmp_path / "run")
    assert ["quantization_config" in options for options in load_calls] == [True]
    assert run.metrics["compiled"] is False
    merge(run, tmp_path / "merged")
    assert ["quantization_config" in options for options in load_calls] == [True, False]
    assert load_calls[1]["dtype"] == torch.float32
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(stored["shared.weight"], load_model(tiny_base).shared.weight)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
