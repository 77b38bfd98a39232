"""Cross-entropy over a large vocabulary, in float32 a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over tokens.

    The logits of 8 targets of 72 tokens are 74 MB in float32, and torch's loss passes over them several times, forward
    and backward. A few rows fit into the cache, and leave only their gradient.
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
            counted, columns = (targets != ignored).unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
            values = part.float().log_softmax(1)
            total -= (values.gather(1, columns) * counted).sum()
            values.exp_().scatter_add_(1, columns, torch.full(columns.shape, -1.0, device=logits.device))
            torch.mul(values, counted, out=out)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits, as bf16."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0]), None, None
