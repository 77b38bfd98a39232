"""The products of adapters in a graph: every adapted layer takes its A and B as inputs, a row of the batch one adapter.

A group of layers that share an input has one product with A for all of them, then one with B for each, side by side.
Where a layer's weights are rounded to integers, so are its adapters, as bytes: a step of eight rows with eight adapters
reads as many bytes of adapters as of weights otherwise. What A makes of a row is rounded by a scale that was found when
the adapter was put into the bank, so that no range is looked for in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from export.graph import FLOAT, INT8, MS, Graph
from export.quantize import Blocks, Int8, Storage, Weight, quantised_input

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

        A is [inputs, parts * rank] and B [parts, rank, width], without the first axis where there is one part. Bytes
        have scales: of A's columns, and of the outputs.
        """
        parts = len(self.layers)
        down, up = (self.inputs, parts * self.rank), (parts, self.rank, self.width)
        shapes = {"A": down, "B": up if parts > 1 else up[1:]}
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

    def __init__(self, storage: Storage, ranks: Mapping[str, int], groups: dict[str, Group]) -> None:
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
        product = self._storage.linear(g, x, weight)
        added = _exact(g, x, group, *names) if exact else _rounded(g, x, group, weight.peak, *names)
        return g.op("Add", product, added, output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return self._storage.rows(g, ids, weight)


def _exact(g: Graph, x: str, group: Group, a: str, b: str) -> str:
    return _by_part(g, g.op("MatMul", x, a), group, lambda inner: g.op("MatMul", inner, b))


def _rounded(g: Graph, x: str, group: Group, peak: float, a: str, b: str, a_scale: str, b_scale: str) -> str:
    one, zero = g.constant(np.float32(1), "float.1"), g.constant(np.uint8(128), "uint8.128")
    quantised, step, by_row = quantised_input(g, x, peak)
    inner = g.op("MatMulIntegerToFloat", quantised, a, one if by_row else step, a_scale, zero, domain=MS)
    inner = g.op("QuantizeLinear", inner, one, zero)
    # one scale for all of B here, its own ones after: with scales by column this operator takes four times as long
    outer = _by_part(g, inner, group, lambda part: g.op("MatMulIntegerToFloat", part, b, one, one, zero, domain=MS))
    outer = g.op("Mul", outer, b_scale)
    return g.op("Mul", outer, step) if by_row else outer


def _by_part(g: Graph, inner: str, group: Group, product: Callable[[str], str]) -> str:
    """The product [b,q,parts*width] of each part's columns of inner [b,q,parts*rank]."""
    parts = len(group.layers)
    if parts == 1:
        return product(inner)
    apart = g.op("Transpose", g.op("Reshape", inner, g.ints(0, 0, parts, group.rank)), perm=[0, 2, 1, 3])
    together = g.op("Transpose", product(apart), perm=[0, 2, 1, 3])
    return g.op("Reshape", together, g.ints(0, 0, parts * group.width))
