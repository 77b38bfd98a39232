"""Norms, linear layers and gates of T5 with fewer passes over memory, for training in bf16 on a CPU.

A third of a step of FLAN-T5-small moves activations through memory: autocast casts a norm's output once for each layer
that reads it, peft casts it to float32 and back, and the tanh form of GELU is eight operations. The functions below
compute the same values in one or two passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


def normalize(norm: Any, x: Tensor) -> Tensor:
    """Return the output of a norm: bf16 if its weight is frozen, since only matrix products read it."""
    output: Tensor = norm(x) if norm.weight.requires_grad else _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)
    return output


class _RmsNorm(torch.autograd.Function):
    """T5's norm with a frozen weight. The output is bf16, since only matrix products read it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return x / rms(x) * weight for x [..., d], as bf16."""
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight).bfloat16()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        x, weight, inverse = ctx.saved_tensors
        gradient = gradients[0] * weight
        along = torch.linalg.vecdot(gradient, x).unsqueeze(-1) * inverse.square().div_(x.shape[-1])
        return gradient.sub_(x * along).mul_(inverse), None, None


class Projection:
    """Linear layers with one input.

    Frozen ones, with or without an adapter, are one matrix product. Others (trained ones, adapters with dropout, a bias
    or a variant such as DoRA) run their own code.

    Args:
        layers: The layers, in order.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = list(layers)
        self._is_frozen = all(is_frozen(layer) for layer in layers)
        self._weight: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layers' outputs side by side: bf16 [tokens, sum of their sizes] for x [tokens, in]."""
        if not self._is_frozen or any(getattr(layer, "merged", False) for layer in self._layers):
            return torch.cat([layer(x).bfloat16() for layer in self._layers], dim=1)
        bases = [getattr(layer, "base_layer", layer) for layer in self._layers]
        if self._weight is None:
            self._weight = torch.cat([base.weight.detach().bfloat16() for base in bases])
        adapters: list[tuple[slice, float]] = []
        matrices: list[Tensor] = []
        start = 0
        for layer, base in zip(self._layers, bases, strict=True):
            if layer is not base and not layer.disable_adapters:
                adapters.append((slice(start, start + base.out_features), layer.scaling["default"]))
                matrices += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            start += base.out_features
        output: Tensor = _LoraLinears.apply(x.bfloat16(), self._weight, adapters, *matrices)
        return output


def is_frozen(layer: Any) -> bool:
    """Return True for a frozen x W', and for a LoRA layer on it that computes x W' + s x A' B' and nothing else."""
    from peft.tuners.lora import Linear

    base = layer.base_layer if isinstance(layer, Linear) else layer
    if type(base) is not nn.Linear or base.bias is not None or base.weight.requires_grad:
        return False
    return base is layer or (
        list(layer.lora_A) == ["default"]
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and layer.lora_B["default"].bias is None
    )


class _LoraLinears(torch.autograd.Function):
    """Frozen linear layers with one input, to whose outputs adapters are added inside the matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, adapters: list[tuple[slice, float]], *matrices: Tensor) -> Tensor:
        """Return x W' with scale * x A' B' added to the columns of each adapter, as bf16.

        Args:
            ctx: Context of autograd.
            x: Input [tokens, in], bf16.
            weight: Frozen W [out, in], bf16.
            adapters: Columns and scale of each adapter.
            matrices: A [r, in] and B [columns, r] of each adapter.
        """
        output = x @ weight.T
        ctx.adapters, ctx.ranks = adapters, [len(a) for a in matrices[::2]]
        if not adapters:
            ctx.save_for_backward(weight)
            return output
        a = torch.cat(matrices[::2]).bfloat16()
        inner = x @ a.T
        scaled = [(b * scale).bfloat16() for b, (_, scale) in zip(matrices[1::2], adapters, strict=True)]
        for b, (columns, _), part in zip(scaled, adapters, inner.split(ctx.ranks, 1), strict=True):
            output[:, columns].addmm_(part, b.T)
        ctx.save_for_backward(weight, x, a, inner, *scaled)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, as bf16, and of each A and B, as float32."""
        (gradient,) = gradients
        weight, *saved = ctx.saved_tensors
        x_gradient = gradient @ weight if ctx.needs_input_grad[0] else None
        if not saved:
            return x_gradient, None, None
        x, a, inner, *scaled = saved
        own = [gradient[:, columns] for columns, _ in ctx.adapters]
        # oneDNN computes narrow products faster with the narrow side first: [r, columns] [columns, tokens]
        inner_gradient = torch.cat([b.T @ part.T for part, b in zip(own, scaled, strict=True)])
        if x_gradient is not None:
            x_gradient.addmm_(inner_gradient.T, a)
        a_gradients = (inner_gradient @ x).float().split(ctx.ranks)
        inners = inner.split(ctx.ranks, 1)

        def of_matrices() -> Iterator[Tensor]:
            for a_gradient, part, before, (_, scale) in zip(a_gradients, own, inners, ctx.adapters, strict=True):
                yield a_gradient
                yield (before.T @ part).T.float().mul_(scale)

        return x_gradient, None, None, *of_matrices()


class GatedGelu(torch.autograd.Function):
    """gelu(a) b in GELU's tanh form, for a and b side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return [tokens, d] of x [tokens, 2 d]."""
        a, b = x.chunk(2, dim=1)
        gate = gelu(a, approximate="tanh")
        ctx.save_for_backward(x, gate)
        return gate * b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of x."""
        x, gate = ctx.saved_tensors
        a, b = x.chunk(2, dim=1)
        result = torch.empty_like(x)
        a_result, b_result = result.chunk(2, dim=1)
        torch.mul(gradients[0], gate, out=b_result)
        torch.ops.aten.gelu_backward.grad_input(gradients[0] * b, a, approximate="tanh", grad_input=a_result)
        return result
