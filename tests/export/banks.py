"""Adapters on tiny checkpoints, their merged checkpoints, and banks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from lora_ft.core.codecs import codec_named
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.adapter_slots import Adapter, LowRank
from lora_ft.export.bundle.bank import BankAdapter
from lora_ft.export.bundle.publish import write_bank
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.parity import Probe, Report
from tests.export.oracle import ORIGIN, PAD, SPECIAL, references

LINEAR = (".q", ".k", ".v", ".o", ".wi", ".wi_0", ".wi_1", ".wo")


def draw_adapter(
    checkpoint: Path, seed: int, rank: int = 4, endings: Sequence[str] = LINEAR, size: float = 0.7
) -> dict[str, LowRank]:
    """Return an adapter of the linear layers with these endings, large enough that every part affects the output."""
    rng = np.random.default_rng(seed)
    layers = {}
    for name, weight in sorted(load_file(checkpoint / "model.safetensors").items()):
        layer = name.removesuffix(".weight")
        if "block" in layer and layer.endswith(tuple(endings)):
            a = rng.standard_normal((rank, weight.shape[1])) / np.sqrt(weight.shape[1])
            b = rng.standard_normal((weight.shape[0], rank)) * size / np.sqrt(rank)
            layers[layer] = LowRank(a.astype(np.float32), b.astype(np.float32))
    return layers


def merged(checkpoint: Path, adapter: Adapter, out: Path) -> Path:
    """Write the checkpoint with the adapter merged in, and return its folder."""
    out.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    for layer, change in adapter.items():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + change.b @ change.a
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def samples(seed: int = 0, rows: int = 8) -> tuple[Sample, ...]:
    rng = np.random.default_rng(seed)
    return tuple(Sample(rng.integers(3, 60, 12), np.array([PAD, *rng.integers(3, 60, 6)])) for _ in range(rows))


def member(name: str, adapter: Adapter, whole: Path, **origin: Any) -> BankAdapter:
    """Return an adapter for `add_adapter`.

    Args:
        name: Name of the adapter.
        adapter: Weights of the adapter.
        whole: Checkpoint with the adapter merged in, for PyTorch's answers.
        origin: Changes to `ORIGIN`.
    """
    tokenizer = Tokenizer(whole / "tokenizer.json", codec_named(origin.pop("codec", "none")))
    return BankAdapter(
        name,
        adapter,
        replace(ORIGIN, adapter=name, **origin),
        tokenizer,
        lambda: references(whole),
        Probe.of(next(references(whole)), SPECIAL),
        samples(),
    )


def make_bank(checkpoint: Path, members: Sequence[BankAdapter], out: Path, **changes: Any) -> dict[str, Report]:
    """Write a bank on a tiny checkpoint; `changes` are arguments of `write_bank`."""
    source = ExportSource(
        checkpoint,
        Tokenizer(checkpoint / "tokenizer.json"),
        replace(ORIGIN, adapter=""),
        references(checkpoint),
        next(references(checkpoint)),
        changes.pop("samples", samples()),
    )
    return write_bank(source, members, out, **changes)
