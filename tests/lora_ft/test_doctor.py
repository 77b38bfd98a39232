"""doctor: facts about this machine, with words for missing ones."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_ft.core.hub import hub_trouble
from lora_ft.doctor import examine


@pytest.fixture(autouse=True)
def _forget_hub_state() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


def test_versions_are_those_of_installed_packages() -> None:
    facts = examine()
    assert platform.python_version() in facts["python"]
    for package in ("torch", "transformers", "peft", "onnxruntime"):
        assert facts[package] == importlib.metadata.version(package)


def test_the_package_of_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.package_name", "onnxruntime-gpu")
    assert examine()["onnxruntime"].endswith(" (onnxruntime-gpu)")


def test_every_fact_is_a_text() -> None:
    assert all(isinstance(fact, str) and fact for fact in examine().values())


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_onnx(name: str) -> str:
        if name == "onnx":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_onnx)
    facts = examine()
    assert facts["onnx"] == "not installed" and facts["torch"] == version("torch")


def test_doctor_works_without_torch_and_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.doctor.find_spec", lambda _: None)
    facts = examine()
    assert "torch is not installed" in facts["gpus"] and "huggingface-hub is not installed" in facts["hub"]


def test_relevant_instruction_sets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset({"fpu", "avx2", "amx_bf16"}))
    assert examine()["cpu flags"] == "avx2 amx_bf16"
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset({"fpu"}))
    assert examine()["cpu flags"] == "none relevant"


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examine()["gpus"] == "none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert examine()["gpus"] == "card 0, card 1"


def test_offline_mode_of_the_hub_is_reported() -> None:
    assert examine()["hub"] == "HF_HUB_OFFLINE is set"


def test_the_cached_offline_base_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path))
    assert examine()["offline base"].startswith("not cached; its package is ")
    (tmp_path / "offline-flan-t5-small-1").mkdir()
    assert examine()["offline base"] == f"cached in {tmp_path}"


def test_doctor_works_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_ft.doctor.Path", lambda _: tmp_path / "none")
    facts = examine()
    assert facts["memory"] == "unknown" and facts["cpu"]
