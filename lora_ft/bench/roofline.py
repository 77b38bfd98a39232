"""The roofline of a decoder step: the bytes of weights that it must read, over the bandwidth of the memory they lie in.

At small batches a decoder is memory-bound, so no engine can take a step faster than it can read the weights. Every step
reads the same weights. If they fit the processor's caches, they are still there from the step before. Else each step
reads most of them from DRAM, since the weights read last have displaced those that are read next.

The kernel reads the head in 4 bits, and in 8 bits only where the best token may be. Its bytes are counted as those of
its graphs, so its share of the roofline may exceed 100 %.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from lora_ft.bench.engines import Engine
from lora_ft.core.files import read_json
from lora_ft.core.hardware import allowed_cpus, cache_bytes
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.precision import FORMATS, parse

DRAM_BLOCK = 2**28  # bytes; at least four times the caches
_BYTES = {name: entry.bytes for name, entry in FORMATS.items()} | {"int4": 0.5}  # int4 is a peer's name


def step_bytes(engine: Engine, prepared: Path, checkpoint: Path | None) -> float | None:
    """Return the bytes of weights that one decoder step reads, or None if unknown.

    For a bundle, these are the weights of its step graph with their scales, without the embedding. For other formats,
    they are the parameters of decoder and head at the width of the precision. Weights for keys and values of
    cross-attention are left out, since those are computed once per answer.
    """
    if (prepared / "step.onnx").is_file():
        return float(stored_bytes(prepared))
    if checkpoint is None or engine.file is not None:
        return None
    architecture = Architecture.read(read_json(checkpoint / "config.json"), checkpoint)
    layers, head = _parameters(architecture)
    if engine.precision in _BYTES:
        return (layers + head) * _BYTES[engine.precision]
    precision = parse(engine.precision)
    return layers * _BYTES[precision.decoder] + head * _BYTES[precision.head]


def memory_of(size: float) -> Literal["cache", "DRAM"]:
    """Return the memory that weights of `size` bytes lie in between two steps."""
    return "cache" if size <= cache_bytes() else "DRAM"


def weight_bandwidth(size: float) -> float:
    """Return the bandwidth at which weights of `size` bytes are read again and again, in bytes per second.

    A block of their size is read: of weights a little larger than the caches, a part is there from the step before.
    """
    return read_bandwidth(min(int(size), max(DRAM_BLOCK, 4 * cache_bytes())))


def read_bandwidth(size: int, rounds: int = 15) -> float:
    """Return the best bandwidth of `rounds` reads of a block of `size` bytes, in bytes per second."""
    import torch

    torch.set_num_threads(allowed_cpus())
    block, best = torch.ones(size // 4), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        block.sum().item()
        best = max(best, size / (time.perf_counter() - began))
    return best


def stored_bytes(bundle: Path) -> int:
    """Return the bytes of weights in a bundle's step graph, without lookup tables such as the embedding."""
    import onnx

    graph = onnx.load(bundle / "step.onnx", load_external_data=False).graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    return sum(
        int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
        for tensor in graph.initializer
        if tensor.external_data and tensor.name not in looked_up
    )


def _parameters(a: Architecture) -> tuple[int, int]:
    """Return the number of parameters of the decoder's layers, and of the head."""
    attention = 6 * a.d_model * a.width  # q, k, v, o of self-attention, q and o of cross-attention
    forward = (3 if a.gated else 2) * a.d_model * a.d_ff
    return a.decoder_layers * (attention + forward), a.d_model * a.vocabulary
