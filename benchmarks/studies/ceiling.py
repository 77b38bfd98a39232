"""Measure an upper bound on training speed: the matrix products of one step alone.

    python -m benchmarks.studies.ceiling [--base offline] [--rows 8] [--source 256] [--target 48] [--rank 16]

A LoRA step on a frozen base multiplies by every weight twice (in the forward pass, and for the gradient of its input),
and by both small factors three times. No compiler can make a step faster than these products.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks.command import run_command
from lora_ft.core.hardware import allowed_cpus
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.models.bases import find_base
from lora_ft.training.compute_dtype import choose_compute_dtype


def products(a: Architecture, source: int, target: int, rank: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (count, rows, in, out) of the products of a step over `source` and `target` tokens."""
    inner = (2 if a.gated else 1) * a.d_ff
    attention = [(3, a.d_model, a.width), (1, a.width, a.d_model)]
    forward = [(1, a.d_model, inner), (1, a.d_ff, a.d_model)]
    layers = [
        (a.layers, source, attention + forward),
        (a.decoder_layers, target, [*attention, (1, a.d_model, a.width), (1, a.width, a.d_model), *forward]),
        (a.decoder_layers, source, [(2, a.d_model, a.width)]),
    ]
    for count, rows, linears in layers:
        for times, inputs, outputs in linears:
            yield from [(count * times, rows, inputs, outputs), (count * times, rows, outputs, inputs)]
            for _ in range(3):
                yield from [(count * times, rows, inputs, rank), (count * times, rows, rank, outputs)]
    yield from [(1, target, a.d_model, a.vocabulary), (1, target, a.vocabulary, a.d_model)]


def seconds(rows: int, inputs: int, outputs: int, kind: torch.dtype) -> float:
    """Return the median time of one product, in seconds."""
    activations, weights = torch.randn(rows, inputs).to(kind), torch.randn(outputs, inputs).to(kind)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        torch.nn.functional.linear(activations, weights)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main(base: str = "offline", rows: int = 8, source: int = 256, target: int = 48, rank: int = 16) -> None:
    """Print the bound for the precision that training chooses on this machine, and for fp32."""
    torch.set_num_threads(allowed_cpus())
    base_model = find_base(base)
    architecture = Architecture.read(base_model.config, base_model.folder)
    compute_dtype = choose_compute_dtype("auto", "cpu")
    for name, kind in dict.fromkeys(
        [(compute_dtype.name, torch.bfloat16 if compute_dtype.is_bf16 else torch.float32), ("fp32", torch.float32)]
    ):
        total = work = 0.0
        for count, height, inputs, outputs in products(architecture, rows * source, rows * target, rank):
            total += count * seconds(height, inputs, outputs, kind)
            work += count * 2 * height * inputs * outputs
        print(
            f"{name}: {work / 1e9:.0f} GFLOP per step take {total:.2f} s ({work / total / 1e9:.0f} GFLOP/s), so "
            f"at most {rows / total:.1f} samples/s of {source}+{target} tokens"
        )


if __name__ == "__main__":
    run_command(main)
