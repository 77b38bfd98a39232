"""Weights of all adapters of a group, in one matrix with a row per adapter. Layers use views of it.

A row holds the adapter's A matrices, layer after layer, then its B matrices. The optimizer's step, clipping, and the
removal of an adapter are therefore operations on rows, independent of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_ft.export.families import family_of
from lora_ft.multi_lora.batched_linear import SOURCE, TARGET, BatchRouting, MultiLoraLinear
from lora_ft.multi_lora.packed_linear import GroupProjection
from lora_ft.multi_lora.peft_adapter import Adapter, weight_name
from lora_ft.training.packed_stack import PackedStacks


@dataclass(frozen=True)
class StackedLayer:
    """Position of one adapted layer in a row.

    Attributes:
        name: Name of the layer in the base.
        inputs, outputs: Input and output width.
        rank: Largest rank of any adapter.
        a, b: Columns at which A [inputs, rank] and B [rank, outputs] begin.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    a: int
    b: int

    def view(self, rows: Tensor, side: str) -> Tensor:
        """Return A [n, inputs, rank] or B [n, rank, outputs] as a view of rows [n, width]."""
        start, height, width = (self.a, self.inputs, self.rank) if side == "A" else (self.b, self.rank, self.outputs)
        return rows[:, start : start + height * width].view(len(rows), height, width)


class StackedWeights:
    """Stack of adapters on a frozen base. `route` assigns rows of a batch to adapters.

    Attributes:
        adapters: Adapters in the order of the rows.
        layers: Layers that at least one adapter adapts, in the base's order.
        weights, gradients: Matrices [adapters, width], float32. `backward` adds to the gradients.
        split: Column at which the B matrices begin.
        packing: Packed rows of the model, or None; see `pack`.

    Args:
        model: Base model, already on its device.
        adapters: Adapters in the order of the rows.
    """

    def __init__(self, model: Any, adapters: Sequence[Adapter]) -> None:
        self.adapters = list(adapters)
        self.route = BatchRouting()
        self.packing: PackedStacks | None = None
        model.requires_grad_(False)
        adapted = [
            (name, module, rank)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and (rank := max(adapter.rank(name) for adapter in adapters))
        ]
        self.split = sum(module.in_features * rank for _, module, rank in adapted)
        a, b = 0, self.split
        self.layers: list[StackedLayer] = []
        for name, module, rank in adapted:
            self.layers.append(StackedLayer(name, module.in_features, module.out_features, rank, a, b))
            a, b = a + module.in_features * rank, b + module.out_features * rank
        self.device = adapted[0][1].weight.device
        self.weights = torch.zeros(len(adapters), b, device=self.device)
        self.gradients = torch.zeros_like(self.weights)
        self._linears: list[MultiLoraLinear] = []
        family = family_of(model.config.model_type)
        for layer, (name, module, _) in zip(self.layers, adapted, strict=True):
            scale = torch.ones(len(adapters), device=self.device)
            a_view, b_view = layer.view(self.weights, "A"), layer.view(self.weights, "B")
            # Layers computed once per source, such as cross-attention's keys and values, receive source positions.
            side = SOURCE if family.layer_kind(name) == "encoder" else TARGET
            linear = MultiLoraLinear(module, self.route, a_view, b_view, scale, side)
            _replace(model, name, linear)
            self._linears.append(linear)
        self._bind()

    def _bind(self) -> None:
        """Bind the parameters of the layers to the current rows."""
        for layer, linear in zip(self.layers, self._linears, strict=True):
            for side in "AB":
                # Each parameter is a leaf that shares the matrix's memory, so gradients accumulate in `gradients`.
                # Slices of one leaf would allocate a matrix of zeros for each layer.
                parameter = nn.Parameter(layer.view(self.weights, side))
                parameter.grad = layer.view(self.gradients, side)
                setattr(linear, side.lower(), parameter)
            scales = [adapter.scales.get(layer.name, 0.0) for adapter in self.adapters]
            linear.scale = torch.tensor(scales, device=self.device)
            linear.adapted = [adapter.rank(layer.name) > 0 for adapter in self.adapters]

    def load(self, adapter: int, weights: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        """Copy an adapter's weights, by peft's names, into its row of the weights, or of `rows` [adapters, width]."""
        row = (self.weights if rows is None else rows)[adapter : adapter + 1]
        row.zero_()
        for layer in self.layers:
            rank = self.adapters[adapter].rank(layer.name)
            if rank:
                layer.view(row, "A")[0, :, :rank] = weights[weight_name(layer.name, "A")].T
                layer.view(row, "B")[0, :rank] = weights[weight_name(layer.name, "B")].T

    def read(self, adapter: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return CPU copies of an adapter's weights, or of its row of `rows`, by peft's names and in peft's shapes."""
        row = (self.weights if rows is None else rows)[adapter : adapter + 1]
        weights = {}
        for layer in self.layers:
            rank = self.adapters[adapter].rank(layer.name)
            if rank:
                weights[weight_name(layer.name, "A")] = _apart(layer.view(row, "A")[0, :, :rank])
                weights[weight_name(layer.name, "B")] = _apart(layer.view(row, "B")[0, :rank])
        return weights

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows and free the memory of the others."""
        self.adapters = [self.adapters[row] for row in rows]
        self.weights = self.weights.index_select(0, torch.tensor(rows, dtype=torch.long, device=self.device))
        self.gradients = torch.zeros_like(self.weights)
        self._bind()

    def pack(self, model: Any) -> None:
        """Let the model train on packed rows, in bf16 on a CPU and without dropout."""
        self.packing = PackedStacks(model, GroupProjection)

    def restore(self, weights: Tensor) -> None:
        """Copy the weights of another stack of the same adapters."""
        self.weights.copy_(weights)

    def remove(self, model: Any) -> None:
        """Restore the base's own layers."""
        if self.packing:
            self.packing.remove()
        for layer, linear in zip(self.layers, self._linears, strict=True):
            _replace(model, layer.name, linear.base)

    @property
    def norms(self) -> Tensor:
        """Norm of each adapter's gradient, [adapters]."""
        return torch.linalg.vector_norm(self.gradients, dim=1)


def _apart(view: Tensor) -> Tensor:
    return view.T.to("cpu", copy=True).contiguous()


def _replace(model: Any, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
