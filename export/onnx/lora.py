"""Adapters in a graph: every adapted layer has A and B as graph inputs, with one adapter per row of the batch.

A group of layers that share an input has one product with A for all layers, then one with B per layer, side by side.
If a layer's weights are integers, its adapters are bytes too. Otherwise a step of eight rows with eight adapters
would read as many bytes of adapters as of weights. A's output is rounded with a scale that was calibrated when the
adapter was added to the bank, so a step does not compute its range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_ft.export.onnx.graph import FLOAT, INT8, MS, Graph
from lora_ft.export.onnx.quantization import Blocks, Int8, Weight, WeightFormat, quantized_input

KINDS = {"float32": FLOAT, "int8": INT8}
PREFIX = "adapter."  # prefix of the inputs' names


@dataclass(frozen=True)
class Group:
    """Layers side by side, and the shapes of their adapters.

    Attributes:
        layers: Names of the layers. An adapter may adapt a subset.
        inputs: Width of the shared input.
        width: Width of each output.
        rank: Maximum rank of an adapter.
        exact: Whether adapters are float32 instead of bytes.
        by_row: For bytes, whether the input has a scale per row.
    """

    layers: tuple[str, ...]
    inputs: int
    width: int
    rank: int
    exact: bool
    by_row: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.layers)

    @property
    def values(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(dtype, shape) of each array of an adapter, by graph input.

        A is [inputs, parts * rank]. B is [1, parts, rank, width], whose first axis is for tokens, or [rank, width] for
        a single part. Bytes have scales for A's columns and for the outputs.
        """
        parts = len(self.layers)
        down, up = (self.inputs, parts * self.rank), (self.rank, self.width)
        shapes = {"A": down, "B": (1, parts, *up) if parts > 1 else up}
        dtype = "float32" if self.exact else "int8"
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            f"{PREFIX}{self.name}.{side}": (dtype, shape) for side, shape in shapes.items()
        }
        if not self.exact:
            scales = {"A": (1, parts * self.rank), "B": (1, parts * self.width)}
            arrays |= {f"{PREFIX}{self.name}.{side}.scale": ("float32", shape) for side, shape in scales.items()}
        return arrays


class Adapted:
    """A format that adds adapters to the layers in `ranks`.

    Args:
        storage: Format of the weights.
        ranks: Maximum rank of an adapter, by layer.
        groups: Groups by name. Building a graph adds its groups.
    """

    def __init__(self, storage: WeightFormat, ranks: Mapping[str, int], groups: dict[str, Group]) -> None:
        self.alpha, self.compensates = storage.alpha, storage.compensates
        self._storage, self._ranks, self._groups = storage, ranks, groups

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        rank = max(self._ranks.get(layer, 0) for layer in weight.layers)
        if not rank:
            return self._storage.linear(g, x, weight, output)
        exact = not isinstance(self._storage, Int8 | Blocks)
        width = weight.outputs // len(weight.layers)
        group = Group(weight.layers, weight.inputs, width, rank, exact, by_row=not exact and not weight.peak)
        self._groups[group.name] = group
        names = [g.input(name, KINDS[dtype], "adapters", *shape) for name, (dtype, shape) in group.values.items()]
        added, step = _exact(g, x, group, *names) if exact else _rounded(g, x, group, weight.peak, names)
        if step and isinstance(self._storage, Int8):
            # the scale of a row multiplies the sum once instead of both terms
            return g.op("Mul", g.op("Add", self._storage.unscaled(g, x, weight), added), step, output=output)
        added = g.op("Mul", added, step) if step else added
        return g.op("Add", self._storage.linear(g, x, weight), added, output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return self._storage.rows(g, ids, weight)


def _exact(g: Graph, x: str, group: Group, a: str, b: str) -> tuple[str, str]:
    return _by_part(g, g.op("MatMul", x, a), group, lambda inner: g.op("MatMul", inner, b)), ""


def _rounded(g: Graph, x: str, group: Group, peak: float, values: Sequence[str]) -> tuple[str, str]:
    """Return (addition of an adapter, scale of each row by which it must be multiplied, or "")."""
    a, b, a_scale, b_scale = values
    unit, zero = g.constant(np.float32(1), "float.1"), g.constant(np.uint8(128), "uint8.128")
    signed = g.constant(np.int8(0), "int8.0")
    quantized, step, by_row = quantized_input(g, x, peak)
    inner = g.op("QLinearMatMul", quantized, unit if by_row else step, zero, a, a_scale, signed, unit, zero)
    # B's scales are multiplied afterwards, since the operator takes twice as long with scales per column
    outer = _by_part(g, inner, group, lambda part: g.op("MatMulIntegerToFloat", part, b, unit, unit, zero, domain=MS))
    return g.op("Mul", outer, b_scale), step if by_row else ""


def _by_part(g: Graph, inner: str, group: Group, product: Callable[[str], str]) -> str:
    """Return the products [b,q,parts*width] of the columns of each part of `inner` [b,q,parts*rank].

    Only decoder groups have several parts, and there q is small, so a reshape is enough.
    """
    parts = len(group.layers)
    if parts == 1:
        return product(inner)
    apart = g.op("Reshape", inner, g.ints(0, 0, parts, 1, group.rank))
    return g.op("Reshape", product(apart), g.ints(0, 0, parts * group.width))
