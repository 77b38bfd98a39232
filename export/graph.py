"""A small builder over onnx.helper: nodes are appended in order, names are made, constants are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The newest IR that every ONNX Runtime since 1.18 reads; onnx.helper would write one that it refuses.
IR_VERSION = 10
OPSET = 18
MS = "com.microsoft"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

Shape = Sequence[int | str]


class Graph:
    """One graph under construction. `op` appends a node and returns the names of what it puts out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def input(self, name: str, kind: int, *shape: int | str) -> str:
        """Declare a graph input; a string in `shape` is a free axis."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, kind: int, *shape: int | str) -> str:
        """Declare a graph output; the node that makes it names it in `outputs`."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, array: np.ndarray | np.generic, name: str = "") -> str:
        """Store an array once under its name and return the name."""
        name = name or self._fresh("constant")
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant, the form in which operators take axes and shapes."""
        return self.constant(np.array(values, np.int64), "ints." + ".".join(map(str, values)))

    def scalar(self, value: int) -> str:
        """A 0-D int64 constant."""
        return self.constant(np.int64(value), f"int.{value}")

    def op(self, kind: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return that output's name, a new one unless given."""
        return self.ops(kind, *inputs, outputs=[output], domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node and return the names of its outputs: None asks for a new name, "" leaves an output out."""
        names = tuple(self._fresh(kind) if name is None else name for name in outputs)
        self._nodes.append(helper.make_node(kind, inputs, names, name=self._fresh("node"), domain=domain, **attributes))
        return names

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lora-ft")

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count}"
