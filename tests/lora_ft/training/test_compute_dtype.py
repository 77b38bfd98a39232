"""The precision is chosen by what the device can do, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_ft.training.compute_dtype import choose_compute_dtype, cpu_flags


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [
        ({"avx2", "amx_bf16", "avx512_bf16"}, "bf16", "the CPU has amx_bf16 and avx512_bf16"),
        ({"avx512_bf16"}, "bf16", "the CPU has avx512_bf16"),
        ({"amx_bf16"}, "bf16", "the CPU has amx_bf16"),
        ({"avx2", "avx512f", "avx512_vnni"}, "fp32", "the CPU has neither AMX nor AVX512 for bf16"),
        (set(), "fp32", "the CPU has neither AMX nor AVX512 for bf16"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], name: str, reason: str
) -> None:
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset(flags))
    precision = choose_compute_dtype("auto", "cpu")
    assert (precision.name, precision.reason) == (name, reason)
    assert precision.is_bf16 == (name == "bf16")


@pytest.mark.parametrize(("able", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bf16_where_it_can_and_never_in_fp16(
    monkeypatch: pytest.MonkeyPatch, able: bool, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    precision = choose_compute_dtype("auto", "cuda")
    assert precision.name == name and "bf16" in precision.reason


def test_other_devices_compute_in_fp32() -> None:
    precision = choose_compute_dtype("auto", "mps")
    assert precision.name == "fp32" and "mps" in precision.reason


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_what_the_task_asks_for_wins(monkeypatch: pytest.MonkeyPatch, device: str, asked: str) -> None:
    able = {"amx_bf16"} if asked == "fp32" else set[str]()
    monkeypatch.setattr("lora_ft.training.compute_dtype.cpu_flags", lambda: frozenset(able))
    precision = choose_compute_dtype(asked, device)
    assert (precision.name, precision.reason) == (asked, "as the task asks")


def test_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n", encoding="utf-8"
    )
    assert cpu_flags(file) == {"fpu", "avx2", "amx_bf16"}
    file.write_text("Features\t: fp asimd bf16\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset()
    file.unlink()
    assert cpu_flags(file) == frozenset()
