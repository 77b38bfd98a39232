"""The weights and products of a graph file, read without the package onnx."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_ft.export.runtime.manifest import WEIGHTS
from lora_ft.export.runtime.protobuf import fields

# fields of onnx.proto: of a model, a graph, a node, a tensor, and an entry of a tensor's external data
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_INPUT, _OPERATOR = 1, 4
_NAME, _RAW, _EXTERNAL = 8, 9, 13
_KEY, _VALUE = 1, 2


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        operator: Its operator.
        inputs: Names of its inputs.
    """

    operator: str
    inputs: list[str]


class GraphWeights:
    """The constants of one graph of a bundle, and its nodes.

    Args:
        path: File of the graph. Its large constants are in weights.bin beside it.

    Attributes:
        nodes: Nodes, in order.

    Raises:
        ValueError: The file is malformed.
    """

    def __init__(self, path: Path) -> None:
        graph = next(content for field, content in fields(path.read_bytes()) if field == _GRAPH)
        self.nodes: list[Node] = []
        self._tensors: dict[str, bytes] = {}
        for field, content in fields(graph):
            if field == _NODE:
                parts = list(fields(content))
                operator = next(text.decode() for number, text in parts if number == _OPERATOR)
                self.nodes.append(Node(operator, [text.decode() for number, text in parts if number == _INPUT]))
            elif field == _INITIALIZER:
                name = next(text.decode() for number, text in fields(content) if number == _NAME)
                self._tensors[name] = content
        self._file = np.memmap(path.parent / WEIGHTS, np.uint8, "r")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        """Return a constant as a flat array.

        Raises:
            ValueError: There is none of this name.
        """
        if name not in self:
            raise ValueError(f"the graph has no constant {name}")
        parts = list(fields(self._tensors[name]))
        entries = [dict(fields(content)) for number, content in parts if number == _EXTERNAL]
        if not entries:
            return np.frombuffer(next(content for number, content in parts if number == _RAW), dtype)
        place = {entry[_KEY]: entry[_VALUE] for entry in entries}
        offset, length = int(place[b"offset"]), int(place[b"length"])
        return self._file[offset : offset + length].view(dtype)
