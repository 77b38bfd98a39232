"""The physical floor of a step: the bytes of weights that it must read, over the bandwidth of this machine."""

from __future__ import annotations

import time
from pathlib import Path

from lora_ft.bench.engines import Engine
from lora_ft.core.files import read_json
from lora_ft.core.hardware import allowed_cpus
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.precision import FORMATS, parse

MEMORY = 2**28  # bytes: more than caches hold
_BYTES = {name: entry.bytes for name, entry in FORMATS.items()} | {"int4": 0.5}  # int4 is a peer's name


def step_bytes(engine: Engine, made: Path, checkpoint: Path | None) -> float | None:
    """Bytes of weights that one step of the decoder reads; None where they are not known.

    Of a bundle: what its step's graph refers to but for the embedding's rows, scales included. Of others: the
    parameters of the decoder and the head at the width of the precision, but for cross-attention's keys and values,
    which are computed once.
    """
    if (made / "step.onnx").is_file():
        return float(stored_bytes(made))
    if checkpoint is None or engine.file is not None:
        return None
    architecture = Architecture.read(read_json(checkpoint / "config.json"), checkpoint)
    layers, head = _parameters(architecture)
    if engine.precision in _BYTES:
        return (layers + head) * _BYTES[engine.precision]
    chosen = parse(engine.precision)
    return layers * _BYTES[chosen.decoder] + head * _BYTES[chosen.head]


def read_bandwidth(size: int, rounds: int = 15) -> float:
    """Bytes a second that this process's cores read out of a block of so many bytes, the best of some rounds."""
    import torch

    torch.set_num_threads(allowed_cpus())
    block, best = torch.ones(size // 4), 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        block.sum().item()
        best = max(best, size / (time.perf_counter() - began))
    return best


def stored_bytes(bundle: Path) -> int:
    """Bytes of the weights that the graph of a bundle's step refers to, but for those it looks rows up in."""
    import onnx

    graph = onnx.load(bundle / "step.onnx", load_external_data=False).graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    return sum(
        int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
        for tensor in graph.initializer
        if tensor.external_data and tensor.name not in looked_up
    )


def _parameters(a: Architecture) -> tuple[int, int]:
    """Of the decoder's layers, and of the head."""
    attention = 6 * a.d_model * a.width  # q, k, v, o of one, q and o of the other
    forward = (3 if a.gated else 2) * a.d_model * a.d_ff
    return a.decoder_layers * (attention + forward), a.d_model * a.vocabulary
