"""A small builder over onnx.helper: nodes are appended in order, names are made, constants are stored once.

Several graphs may share a `WeightFile`: what one of them stored under a name, the others only refer to. ONNX Runtime
maps such a file into memory, so graphs and processes that load it share its pages.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The newest IR that ONNX Runtime 1.22 reads; onnx.helper would write one that it refuses.
IR_VERSION = 10
# No operator here needs this opset, but ONNX Runtime 1.18 to 1.20 ignore the mask of padded rows (MultiHeadAttention)
# and answer wrongly without a word. They end at opset 21, so they refuse these graphs; 1.21 and later answer rightly.
OPSET = 22
MINIMUM_ONNXRUNTIME = "1.22"  # the lowest that is tested; 8-bit weights and bundles need it
MS = "com.microsoft"
FLOAT, INT64, INT32, INT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8
BOOL = TensorProto.BOOL

_INLINE = 1024  # bytes; what is smaller stays in the graph
_LARGEST = 1_800_000_000  # bytes in one file; protobuf ends at 2 GiB
_ALIGNMENT = 4096  # a page, as the ONNX specification of external data asks for

Shape = Sequence[int | str]


class WeightFile:
    """One file of external data, written as graphs are built. Use it as a context manager.

    Attributes:
        name: of the file; graphs that refer to it must lie in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = open(path, "wb")  # noqa: SIM115  (closed by __exit__)
        self._tensors: dict[str, TensorProto] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def put(self, name: str, array: np.ndarray) -> None:
        """Append an array under a name that is not taken."""
        assert name not in self._tensors, name
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self.name, "offset": self._file.tell(), "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(np.ascontiguousarray(array).tobytes())
        self._tensors[name] = tensor

    def tensor(self, name: str) -> TensorProto:
        """The reference to put into a graph."""
        return self._tensors[name]


class Graph:
    """One graph under construction. `op` appends a node and returns the names of what it puts out.

    Args:
        name: of the graph.
        weights: file for its large constants; without one they are stored in the model.
    """

    def __init__(self, name: str, weights: WeightFile | None = None) -> None:
        self.name = name
        self._weights = weights
        self._root = self
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._made: dict[str, str] = {}
        self._count = 0

    def body(self, name: str) -> Graph:
        """A graph for an attribute of one of this graph's nodes (`Loop`, `If`).

        It may use every name of this graph, shares its constants, and makes no name twice.
        """
        inner = Graph(name)
        inner._root = self._root
        return inner

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
        if name:
            return self.weight(name, lambda: np.asarray(array))
        name = self._fresh("constant")  # of this graph alone: another one's may have the same name
        self._root._constants[name] = _inline(name, np.asarray(array))
        return name

    def weight(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """Store the array that `make` returns, which is called only where the name is new, and return the name."""
        root = self._root
        if name in root._constants:
            return name
        if root._weights is not None and name in root._weights:
            root._constants[name] = root._weights.tensor(name)
            return name
        array = make()
        if root._weights is not None and array.nbytes >= _INLINE:
            root._weights.put(name, array)
            root._constants[name] = root._weights.tensor(name)
        else:
            root._constants[name] = _inline(name, array)
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
        self,
        kind: str,
        *inputs: str,
        outputs: Sequence[str | None],
        domain: str = "",
        label: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Append a node and return the names of its outputs: None asks for a new name, "" leaves an output out.

        A `label` is the node's own name, which ONNX Runtime prints where the node fails.
        """
        names = tuple(self._fresh(kind) if name is None else name for name in outputs)
        label = label or self._fresh("node")
        self._nodes.append(helper.make_node(kind, inputs, names, name=label, domain=domain, **attributes))
        return names

    def once(self, key: str, make: Callable[[], str]) -> str:
        """What `make` appended when this graph was first asked for `key`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def size(self, x: str, axis: int) -> str:
        """The length of one axis, as a 0-D int64."""
        return self.op("Squeeze", self.op("Shape", x, start=axis, end=axis + 1), self.ints(0))

    def proto(self) -> onnx.GraphProto:
        """The finished graph; a body carries no constants, they are its root's."""
        constants = list(self._constants.values()) if self._root is self else []
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)

    def model(self) -> onnx.ModelProto:
        """The finished model; its metadata_props name the lowest ONNX Runtime that runs it."""
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        version = importlib.metadata.version("lora-ft")
        model = helper.make_model(
            self.proto(), opset_imports=opsets, ir_version=IR_VERSION, producer_name="lora-ft", producer_version=version
        )
        helper.set_model_props(model, {"lora_ft_version": version, "minimum_onnxruntime": MINIMUM_ONNXRUNTIME})
        return model

    def _fresh(self, prefix: str) -> str:
        root = self._root
        root._count += 1
        return f"{prefix}_{root._count}"


def _inline(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that shares no weights, with its own beside it where they are beyond what one file may hold."""
    # protobuf's own count fails where there is too much to count (a T5 as wide as FLAN-T5-large)
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST
    location = f"{path.name}_data" if external else None  # the name that transformers.js looks for
    onnx.save(model, path, save_as_external_data=external, location=location)
