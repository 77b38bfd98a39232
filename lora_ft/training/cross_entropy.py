"""Cross-entropy over a large vocabulary, in float32 a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_ft.core.tokenizer import IGNORED


def by_token(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [tokens, vocabulary] and targets [tokens] with one entry for each token.

    Args:
        logits: [rows, t, vocabulary], or packed [tokens, vocabulary].
        labels: Target tokens [rows, t]; `IGNORED` marks padding, which packed logits lack.
    """
    targets = labels.flatten()
    if logits.ndim == 2:
        targets = targets[targets != IGNORED]
        targets = nn.functional.pad(targets, (0, len(logits) - len(targets)), value=IGNORED)
    return logits.flatten(0, -2), targets


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


class SummedDistillation(torch.autograd.Function):
    """Cross-entropy on targets and divergence from a teacher, summed over tokens.

    alpha CE + (1 - alpha) T^2 KL(teacher / T || student / T): the square keeps the size of the gradient, which a higher
    temperature T divides by T twice (arXiv 1503.02531). As in `SummedCrossEntropy`, a few rows at a time leave only
    their gradient.
    """

    ROWS = 32
    ROWS_ON_GPUS = 512  # launching kernels is what takes time there

    @staticmethod
    def forward(ctx: Any, logits: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
        """Return the sum as float32.

        Args:
            ctx: Context of autograd.
            logits, teacher: Logits of both models [tokens, vocabulary].
            labels: Target tokens [tokens]; tokens without a loss are `IGNORED`.
            alpha: Weight of the cross-entropy.
            temperature: Divisor of the logits in the divergence.
        """
        gradient = torch.empty_like(logits)
        total = torch.zeros((), device=logits.device)
        rows = SummedDistillation.ROWS if logits.device.type == "cpu" else SummedDistillation.ROWS_ON_GPUS
        parts = zip(logits.split(rows), teacher.split(rows), labels.split(rows), gradient.split(rows), strict=True)
        for part, theirs, targets, out in parts:
            counted, columns = (targets != IGNORED).unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
            values = part.float().log_softmax(1)
            softened = values if temperature == 1 else (part.float() / temperature).log_softmax(1)
            expected = (theirs.float() / temperature).log_softmax(1)
            probabilities = expected.exp()
            entropy = -values.gather(1, columns)
            divergence = (expected.sub_(softened).mul_(probabilities)).sum(1, keepdim=True)
            total += ((alpha * entropy + (1 - alpha) * temperature**2 * divergence) * counted).sum()
            pull = (softened.exp() - probabilities).mul_((1 - alpha) * temperature)
            pull.add_(values.exp_(), alpha=alpha)
            pull.scatter_add_(1, columns, torch.full(columns.shape, -alpha, device=logits.device))
            torch.mul(pull, counted, out=out)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of the student's logits."""
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0]), None, None, None, None
