"""Layers of T5 and peft with fewer passes over memory, for training in bf16 on a CPU without compilation.

A step of FLAN-T5-small spends half of its time on matrix products. The other half moves activations through memory:
autocast casts a norm's output once for each layer that reads it, peft casts it to float32 and back, and the tanh form
of GELU is eight operations. The functions below compute the same values in one or two passes. They cover training
alone: in evaluation mode, every module runs its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

Forward = Callable[[Tensor], Tensor]


def use_lean_layers(model: nn.Module) -> None:
    """Let the norms, feed-forward layers and LoRA layers of a model train with fewer passes over memory.

    Names, weights and gradients stay as they are. Trained norms, and adapters with dropout, a bias or a variant (DoRA),
    keep their own code.

    Args:
        model: T5 with or without an adapter, in float32. Its training steps run under bf16 autocast.
    """
    from peft.tuners.lora import Linear
    from transformers.activations import NewGELUActivation
    from transformers.models.mt5 import modeling_mt5 as mt5
    from transformers.models.t5 import modeling_t5 as t5
    from transformers.models.umt5 import modeling_umt5 as umt5

    for module in model.modules():
        lean: Callable[[Any, Forward, Tensor], Tensor] | None = None
        if isinstance(module, (t5.T5LayerNorm, mt5.MT5LayerNorm, umt5.UMT5LayerNorm)):
            lean = _norm if not module.weight.requires_grad else None
        elif isinstance(module, (t5.T5DenseGatedActDense, mt5.MT5DenseGatedActDense, umt5.UMT5DenseGatedActDense)):
            lean = _feed_forward if isinstance(module.act, NewGELUActivation) else None
        elif isinstance(module, Linear):
            lean = _lora if _is_plain(module) else None
        if lean is not None:
            module.forward = partial(lean, module, module.forward)


def _is_plain(layer: Any) -> bool:
    """Return True for a LoRA layer that computes x W' + s x A' B' and nothing else."""
    return (
        list(layer.lora_A) == ["default"]
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.bias is None
        and layer.lora_B["default"].bias is None
    )


def _norm(module: Any, forward: Forward, x: Tensor) -> Tensor:
    if not module.training:
        return forward(x)
    output: Tensor = _RmsNorm.apply(x, module.weight, module.variance_epsilon)
    return output


def _feed_forward(module: Any, forward: Forward, x: Tensor) -> Tensor:
    if not module.training:
        return forward(x)
    gated = gelu(module.wi_0(x), approximate="tanh") * module.wi_1(x)
    output: Tensor = module.wo(module.dropout(gated))
    return output


def _lora(layer: Any, forward: Forward, x: Tensor) -> Tensor:
    if not layer.training or layer.disable_adapters or layer.merged:
        return forward(x)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    output: Tensor = _LoraLinear.apply(x.bfloat16(), layer.base_layer.weight, a, b, layer.scaling["default"])
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


class _LoraLinear(torch.autograd.Function):
    """Frozen linear layer with an adapter, whose output is added inside the matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return x W' + scale * x A' B', as bf16.

        Args:
            ctx: Context of autograd.
            x: Input [..., in], bf16.
            weight: Frozen W [out, in].
            a, b: Adapter, [r, in] and [out, r].
            scale: Scale of the adapter.
        """
        rows = x.flatten(0, -2)
        weight, a, b = weight.bfloat16(), a.bfloat16(), (b * scale).bfloat16()
        inner = rows @ a.T
        ctx.save_for_backward(rows, weight, a, b, inner)
        ctx.scale = scale
        return (rows @ weight.T).addmm_(inner, b.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        """Return the gradients of x, A and B; those of A and B are float32."""
        rows, weight, a, b, inner = ctx.saved_tensors
        shape = gradients[0].shape[:-1]
        gradient = gradients[0].flatten(0, -2)
        inner_gradient = gradient @ b
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gradient @ weight).addmm_(inner_gradient, a).view(*shape, -1)
        b_gradient = (gradient.T @ inner).float().mul_(ctx.scale)
        return x_gradient, None, (inner_gradient.T @ rows).float(), b_gradient, None


class SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over tokens, in float32 a few rows at a time.

    The logits of 8 targets of 72 tokens are 74 MB in float32, and torch's loss passes over them several times, forward
    and backward. A chunk fits into the cache, and leaves only its gradient.
    """

    ROWS = 32

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
        """Return the sum as float32.

        Args:
            ctx: Context of autograd.
            logits: [tokens, vocabulary], bf16.
            labels: Target tokens [tokens].
            ignored: Label of tokens without a loss.
        """
        gradient = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        rows = SummedCrossEntropy.ROWS
        for part, targets, out in zip(logits.split(rows), labels.split(rows), gradient.split(rows), strict=True):
            values, counted = part.float(), (targets != ignored).unsqueeze(1)
            columns = targets.clamp(min=0).unsqueeze(1)
            normalizer = values.logsumexp(1, keepdim=True)
            total += ((normalizer - values.gather(1, columns)) * counted).sum()
            probabilities = values.sub_(normalizer).exp_()
            probabilities.scatter_add_(1, columns, torch.full_like(normalizer, -1.0))
            out.copy_(probabilities.mul_(counted))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits, as bf16."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None
