"""The step for GPUs can be captured as a CUDA graph, as far as its nodes show."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.graphs import decoder_model, device_step_model
from lora_ft.export.onnx.t5 import T5

# Inputs of ONNX Runtime's CUDA kernels that are on the host, by operator. A value of the device would be copied to it,
# and no CUDA graph captures such a copy.
_SECOND = ("Reshape", "Expand", "Split", "Squeeze", "Unsqueeze", "ReduceMax", "ReduceMean", "TopK")
HOST = {"Range": {0, 1, 2}, "GroupQueryAttention": {6}, "Slice": {1, 2, 3, 4}} | {name: {1} for name in _SECOND}


@pytest.fixture(scope="module")
def parts(checkpoint: Path) -> T5:
    architecture, weights = read_model(checkpoint)
    assert isinstance(architecture, Architecture)
    return T5(architecture, weights)


def copied_to_the_host(model: onnx.ModelProto) -> set[str]:
    """Return the operators that read a value of the device on the host."""
    device = {entry.name for entry in model.graph.input}
    operators = set()
    for node in model.graph.node:
        reads = {place for place, name in enumerate(node.input) if name in device}
        if reads & HOST.get(node.op_type, set()):
            operators.add(node.op_type)
        if reads and node.op_type not in ("Shape", "Size"):
            device |= set(node.output)
    return operators


def test_nothing_is_copied_to_the_host(parts: T5) -> None:
    assert not copied_to_the_host(device_step_model(parts))
    assert copied_to_the_host(decoder_model(parts, calls="step")) == {"Range", "GroupQueryAttention"}


def test_there_is_no_control_flow_and_no_node_in_vain(parts: T5) -> None:
    graph = device_step_model(parts).graph
    assert not {node.op_type for node in graph.node} & {"If", "Loop", "Scan"}
    read = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
    assert not [node.op_type for node in graph.node if not set(node.output) & read]
