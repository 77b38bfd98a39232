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
        reason: Reason for the choice, as text for the log.
    """

    name: str
    reason: str

    @property
    def is_bf16(self) -> bool:
        return self.name == "bf16"


def choose_compute_dtype(setting: str, device: str) -> ComputeDtype:
    """Return the precision of the training step.

    Args:
        setting: Setting train.precision of the task: "auto", "bf16" or "fp32".
        device: "cpu", "cuda" or "mps".
    """
    if setting != "auto":
        return ComputeDtype(setting, "set by the task")
    if device == "cuda":
        import torch

        if torch.cuda.is_bf16_supported():
            return ComputeDtype("bf16", "the GPU computes in bf16")
        return ComputeDtype("fp32", "the GPU does not support bf16, and T5 overflows in fp16")
    if device == "cpu":
        supported = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpu_flags()]
        if supported:
            return ComputeDtype("bf16", f"the CPU supports {' and '.join(supported)}")
        return ComputeDtype("fp32", "the CPU supports neither AMX nor AVX512 for bf16")
    return ComputeDtype("fp32", f"bf16 is untested on {device}")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the CPU flags (instruction sets) that Linux reports; empty on other systems."""
    return frozenset(cpu_says("flags", cpuinfo).split())
