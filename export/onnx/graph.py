"""A small graph builder on onnx.helper that appends nodes in order, generates names and stores each constant once.

Several graphs may share a `WeightFile`: the first graph stores an array under a name, and the others refer to it. ONNX
Runtime maps such a file into memory, so graphs and processes that load it share its pages.
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

# The newest IR version that ONNX Runtime 1.22 reads. The default of onnx.helper is newer and would be refused.
IR_VERSION = 10
# No operator here needs this opset. But ONNX Runtime 1.18 to 1.20 ignore the mask of padded rows (MultiHeadAttention)
# and silently return wrong answers. They stop at opset 21, so they refuse these graphs. 1.21 and later are correct.
OPSET = 22
MINIMUM_ONNXRUNTIME = "1.22"  # lowest tested version; 8-bit weights and bundles need it
MS = "com.microsoft"
FLOAT, INT64, INT32, INT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8
BOOL = TensorProto.BOOL

_INLINE = 1024  # bytes; smaller arrays stay in the graph
_LARGEST = 1_800_000_000  # bytes in one file; protobuf's limit is 2 GiB
_ALIGNMENT = 4096  # bytes of a page, as the ONNX specification of external data requires

Shape = Sequence[int | str]


class WeightFile:
    """One file of external data, written as graphs are built. Use it as a context manager.

    Attributes:
        name: Name of the file. Graphs that refer to it must be in the same folder.
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
        """Append an array under a new name."""
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
        """Return the reference to a stored array, for use in a graph."""
        return self._tensors[name]


class Graph:
    """One graph under construction. `op` appends a node and returns the name of its output.

    Args:
        name: Name of the graph.
        weights: File for large constants. Default: store them in the model.
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
        """Return a graph for an attribute of one of this graph's nodes (`Loop`, `If`).

        The body may use every name of this graph, shares its constants, and never repeats a generated name.
        """
        inner = Graph(name)
        inner._root = self._root
        return inner

    def input(self, name: str, kind: int, *shape: int | str) -> str:
        """Declare a graph input and return its name. A string in `shape` is a free axis."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, kind: int, *shape: int | str) -> str:
        """Declare a graph output and return its name. The node that computes it names it in `outputs`."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, array: np.ndarray | np.generic, name: str = "") -> str:
        """Store an array once under its name and return the name."""
        if name:
            return self.weight(name, lambda: np.asarray(array))
        name = self._fresh("constant")  # unique in this graph only; others may have the same name
        self._root._constants[name] = _inline(name, np.asarray(array))
        return name

    def weight(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """Store the array that `make` returns and return the name. `make` is called only if the name is new."""
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
        """Return a 1-D int64 constant, the form of axes and shapes in operators."""
        return self.constant(np.array(values, np.int64), "ints." + ".".join(map(str, values)))

    def scalar(self, value: int) -> str:
        """Return a 0-D int64 constant."""
        return self.constant(np.int64(value), f"int.{value}")

    def op(self, kind: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output, under a new name by default, and return the output's name."""
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
        """Append a node and return the names of its outputs.

        Args:
            kind: Operator of the node.
            inputs: Names of the inputs.
            outputs: Names of the outputs. None creates a new name, and "" omits an output.
            domain: Domain of the operator.
            label: Name of the node, which ONNX Runtime prints if the node fails.
            attributes: Attributes of the node.
        """
        names = tuple(self._fresh(kind) if name is None else name for name in outputs)
        label = label or self._fresh("node")
        self._nodes.append(helper.make_node(kind, inputs, names, name=label, domain=domain, **attributes))
        return names

    def once(self, key: str, make: Callable[[], str]) -> str:
        """Call `make` on the first use of `key` in this graph, and return the name it returned on every use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def size(self, x: str, axis: int) -> str:
        """Return the length of one axis, as a 0-D int64."""
        return self.op("Squeeze", self.op("Shape", x, start=axis, end=axis + 1), self.ints(0))

    def proto(self) -> onnx.GraphProto:
        """Return the finished graph. The constants of a body are stored in its root."""
        constants = list(self._constants.values()) if self._root is self else []
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)

    def model(self) -> onnx.ModelProto:
        """Return the finished model. Its metadata_props name the lowest supported version of ONNX Runtime."""
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
    """Write a model that shares no weights. Weights too large for one file are stored next to it."""
    # protobuf's own size count fails on models this large (a T5 as wide as FLAN-T5-large)
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST
    location = f"{path.name}_data" if external else None  # name that transformers.js expects
    onnx.save(model, path, save_as_external_data=external, location=location)
