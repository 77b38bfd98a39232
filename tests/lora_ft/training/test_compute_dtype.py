"""Precision by the capabilities of the device, with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_ft.training.compute_dtype import choose_compute_dtype, cpu_flags


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [
        ({"avx2", "amx_bf16", "avx512_bf16"}, "bf16", "the CPU supports amx_bf16 and avx512_bf16"),
        ({"avx512_bf16"}, "bf16", "the CPU supports avx512_bf16"),
        ({"amx_bf16"}, "bf16", "the CPU supports amx_bf16"),
        ({"avx2", "avx512f", "avx512_vnni"}, "fp32", "the CPU supports neither AMX nor AVX512 for bf16"),
        (set(), "fp32", "the CPU supports neither AMX nor AVX512 for bf16"),
    ],
)
def test_cpu_uses_bf16_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], name: str, reason: str
) -> None:
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset(flags))
    precision = choose_compute_dtype("auto", "cpu")
    assert (precision.name, precision.reason) == (name, reason)
    assert precision.is_bf16 == (name == "bf16")


@pytest.mark.parametrize(("able", "name"), [(True, "bf16"), (False, "fp32")])
def test_gpu_uses_bf16_if_supported_and_never_fp16(monkeypatch: pytest.MonkeyPatch, able: bool, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    precision = choose_compute_dtype("auto", "cuda")
    assert precision.name == name and "bf16" in precision.reason


def test_other_devices_use_fp32() -> None:
    precision = choose_compute_dtype("auto", "mps")
    assert precision.name == "fp32" and "mps" in precision.reason


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("setting", ["bf16", "fp32"])
def test_task_setting_overrides_the_device(monkeypatch: pytest.MonkeyPatch, device: str, setting: str) -> None:
    flags = {"amx_bf16"} if setting == "fp32" else set[str]()
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset(flags))
    precision = choose_compute_dtype(setting, device)
    assert (precision.name, precision.reason) == (setting, "set by the task")


def test_flags_are_read_from_the_first_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n", encoding="utf-8"
    )
    assert cpu_flags(file) == {"fpu", "avx2", "amx_bf16"}
    file.write_text("Features\t: fp asimd bf16\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset()
    file.unlink()
    assert cpu_flags(file) == frozenset()
