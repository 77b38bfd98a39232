"""The products of adapters in a graph: every adapted layer takes its A and B as inputs, a row of the batch one adapter.

A group of layers that share an input has one product with A for all of them, then one with B for each, side by side.
Where a layer's weights are rounded to integers, so are its adapters, as bytes: a step of eight rows with eight adapters
reads as many bytes of adapters as of weights otherwise. What A makes of a row is rounded by a scale that was found when
the adapter was put into the bank, so that no range is looked for in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_ft.export.onnx.graph import FLOAT, INT8, MS, Graph
from lora_ft.export.onnx.quantization import Blocks, Int8, Weight, WeightFormat, quantised_input

KINDS = {"float32": FLOAT, "int8": INT8}
PREFIX = "adapter."  # of the inputs' names


@dataclass(frozen=True)
class Group:
    """Layers side by side, and what an adapter has for them.

    Attributes:
        layers: their names; not each of them need be adapted.
        inputs: width of their input.
        width: of the output of each.
        rank: the highest that an adapter may have there.
        exact: whether adapters are float32, and not bytes.
        by_row: of bytes: whether the input has a scale for each row of it.
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
        """(dtype, shape) of each array of one adapter, by the name of the graph's input.

        A is [inputs, parts * rank] and B [1, parts, rank, width], where the first axis is for tokens, or of a single
        part [rank, width]. Bytes have scales: of A's columns, and of the outputs.
        """
        parts = len(self.layers)
        down, up = (self.inputs, parts * self.rank), (self.rank, self.width)
        shapes = {"A": down, "B": (1, parts, *up) if parts > 1 else up}
        dtype = "float32" if self.exact else "int8"
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            f"{PREFIX}{self.name}.{side}": (dtype, shape) for side, shape in shapes.items()
        }
        if not self.exact:
            scales = {"A": (1, parts * self.rank), "B": (1, parts * self.width)}
            found |= {f"{PREFIX}{self.name}.{side}.scale": ("float32", shape) for side, shape in scales.items()}
        return found


class Adapted:
    """A storage whose layers take adapters, where the bank has a rank for them.

    Args:
        storage: of the weights.
        ranks: by the layer's name.
        groups: which this storage adds to, by name, as graphs are built.
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
        if step and isinstance(self._storage, Int8):  # rows' steps multiply the sum once, not both of its parts
            return g.op("Mul", g.op("Add", self._storage.unscaled(g, x, weight), added), step, output=output)
        added = g.op("Mul", added, step) if step else added
        return g.op("Add", self._storage.linear(g, x, weight), added, output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return self._storage.rows(g, ids, weight)


def _exact(g: Graph, x: str, group: Group, a: str, b: str) -> tuple[str, str]:
    return _by_part(g, g.op("MatMul", x, a), group, lambda inner: g.op("MatMul", inner, b)), ""


def _rounded(g: Graph, x: str, group: Group, peak: float, values: Sequence[str]) -> tuple[str, str]:
    """Return an adapter's addition, and the scale of each row that it is measured in, or ""."""
    a, b, a_scale, b_scale = values
    one, zero = g.constant(np.float32(1), "float.1"), g.constant(np.uint8(128), "uint8.128")
    signed = g.constant(np.int8(0), "int8.0")
    quantised, step, by_row = quantised_input(g, x, peak)
    inner = g.op("QLinearMatMul", quantised, one if by_row else step, zero, a, a_scale, signed, one, zero)
    # one scale for all of B here, its own ones after: with scales by column this operator takes twice as long
    outer = _by_part(g, inner, group, lambda part: g.op("MatMulIntegerToFloat", part, b, one, one, zero, domain=MS))
    return g.op("Mul", outer, b_scale), step if by_row else ""


def _by_part(g: Graph, inner: str, group: Group, product: Callable[[str], str]) -> str:
    """The product [b,q,parts*width] of each part's columns of inner [b,q,parts*rank], token by token.

    Parts are many in a decoder alone, where tokens are few: nothing has to be put in another order then.
    """
    parts = len(group.layers)
    if parts == 1:
        return product(inner)
    apart = g.op("Reshape", inner, g.ints(0, 0, parts, 1, group.rank))
    return g.op("Reshape", product(apart), g.ints(0, 0, parts * group.width))
