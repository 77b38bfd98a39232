"""Precision of the training step, chosen once per run, with the reason as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_ft.core.hardware import CPUINFO, cpu_says


@dataclass(frozen=True)
class ComputeDtype:
    """Precision of the training step and the reason for it.

    Attributes:
        name: "bf16" (autocast; weights, norms and residual stay float32) or "fp32".
        reason: Reason for the choice, for the log.
    """

    name: str
    reason: str

    @property
    def is_bf16(self) -> bool:
        return self.name == "bf16"


def choose_compute_dtype(asked: str, device: str) -> ComputeDtype:
    """Return the precision for a device ("cpu", "cuda", "mps"); `asked` is the task's train.precision."""
    if asked != "auto":
        return ComputeDtype(asked, "as the task asks")
    if device == "cuda":
        import torch

        if torch.cuda.is_bf16_supported():
            return ComputeDtype("bf16", "the GPU computes in bf16")
        return ComputeDtype("fp32", "the GPU has no bf16, and T5 overflows in fp16")
    if device == "cpu":
        able = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpu_flags()]
        if able:
            return ComputeDtype("bf16", f"the CPU has {' and '.join(able)}")
        return ComputeDtype("fp32", "the CPU has neither AMX nor AVX512 for bf16")
    return ComputeDtype("fp32", f"bf16 is not tried on {device}")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the CPU flags (instruction sets) that Linux reports; empty on other systems."""
    return frozenset(cpu_says("flags", cpuinfo).split())
