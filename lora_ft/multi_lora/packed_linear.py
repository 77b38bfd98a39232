"""Linear layers of packed rows with several adapters: one product with the base, and one of each adapter's own tokens.

In bf16 on a CPU, an adapter group trains on packed rows as an adapter alone does (`lora_ft.training.packed_stack`). The
tokens of an adapter follow one another, so that its products read and write parts of the packed tensors in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lora_ft.multi_lora.batched_linear import BatchRouting, MultiLoraLinear


class GroupProjection:
    """Linear layers with one input, some of them with the adapters of a group. Takes the place of `Projection`.

    Args:
        layers: The layers, in order: `MultiLoraLinear`, or frozen ones without a bias.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._bases = [layer.base if isinstance(layer, MultiLoraLinear) else layer for layer in layers]
        ends = list(accumulate(base.out_features for base in self._bases))
        self._columns = [
            (slice(end - base.out_features, end), layer)
            for end, base, layer in zip(ends, self._bases, layers, strict=True)
            if isinstance(layer, MultiLoraLinear)
        ]
        self._weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layers' outputs side by side: bf16 [tokens, sum of their sizes] for x [tokens, in]."""
        if self._weight is None:
            self._weight = torch.cat([base.weight.detach().bfloat16() for base in self._bases])
        parts = _parts(self._columns) if self._columns else []
        matrices = [matrix for _, layer in self._columns for matrix in (layer.a, layer.b)]
        output: Tensor = _GroupLinears.apply(x.bfloat16(), self._weight, parts, *matrices)
        return output


@dataclass(frozen=True)
class _Part:
    """One adapter's share of a product.

    Attributes:
        adapter: Number of the adapter.
        tokens: Its tokens.
        layers: Number among the layers with adapters, columns and scale of each layer that it adapts.
    """

    adapter: int
    tokens: slice
    layers: list[tuple[int, slice, float]]


def _parts(columns: Sequence[tuple[slice, MultiLoraLinear]]) -> list[_Part]:
    """Return the parts of the current batch. All layers with one input see the same tokens."""
    first = columns[0][1]
    route: BatchRouting = first.route
    parts = []
    for adapter, tokens in zip(route.numbers, route.spans[first.side], strict=True):
        layers = [
            (number, place, float(layer.get_buffer("scale")[adapter]))
            for number, (place, layer) in enumerate(columns)
            if layer.adapted[adapter]
        ]
        if layers:
            parts.append(_Part(adapter, tokens, layers))
    return parts


class _GroupLinears(torch.autograd.Function):
    """Frozen linear layers with one input, to whose outputs each adapter adds its own at its own tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, parts: list[_Part], *matrices: Tensor) -> Tensor:
        """Return x W' with scale * x A B added for each part, as bf16.

        Args:
            ctx: Context of autograd.
            x: Input [tokens, in], bf16.
            weight: Frozen W [out, in], bf16.
            parts: Tokens, layers and scales of each adapter.
            matrices: A [n, in, r] and B [n, r, columns] of each layer with adapters, of n adapters.
        """
        output = x @ weight.T
        saved = []
        for part in parts:
            a = torch.cat([matrices[2 * number][part.adapter] for number, _, _ in part.layers], dim=1).bfloat16()
            own = [(matrices[2 * number + 1][part.adapter] * scale).bfloat16() for number, _, scale in part.layers]
            inner = x[part.tokens] @ a
            for (_, columns, _), b, own_inner in zip(
                part.layers, own, inner.split([len(b) for b in own], 1), strict=True
            ):
                output[part.tokens, columns].addmm_(own_inner, b)
            saved += [a, inner, *own]
        ctx.save_for_backward(x, weight, *saved)
        ctx.parts, ctx.shapes = parts, [matrix.shape for matrix in matrices]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, as bf16, and of each A and B, as float32."""
        (gradient,) = gradients
        x, weight, *saved = ctx.saved_tensors
        x_gradient = gradient @ weight if ctx.needs_input_grad[0] else None
        of_matrices = [gradient.new_zeros(shape, dtype=torch.float32) for shape in ctx.shapes]
        for part in ctx.parts:
            a, inner, *own = saved[: 2 + len(part.layers)]
            saved = saved[2 + len(part.layers) :]
            outer = [gradient[part.tokens, columns] for _, columns, _ in part.layers]
            # oneDNN computes narrow products faster with the narrow side first: [r, columns] [columns, tokens]
            inner_gradient = torch.cat([b @ part_gradient.T for b, part_gradient in zip(own, outer, strict=True)])
            if x_gradient is not None:
                x_gradient[part.tokens].addmm_(inner_gradient.T, a.T)
            ranks = [len(b) for b in own]
            a_gradients = (inner_gradient @ x[part.tokens]).split(ranks)
            for (number, _, scale), a_gradient, own_inner, part_gradient in zip(
                part.layers, a_gradients, inner.split(ranks, 1), outer, strict=True
            ):
                of_matrices[2 * number][part.adapter] = a_gradient.T
                torch.mul(own_inner.T @ part_gradient, scale, out=of_matrices[2 * number + 1][part.adapter])
        return x_gradient, None, None, *of_matrices
