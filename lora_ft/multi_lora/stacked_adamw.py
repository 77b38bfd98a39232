"""Take AdamW steps of all adapters of a group at once, each with its own rate, decay, clipping and step count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ft.multi_lora.stacked_weights import StackedWeights

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch's and transformers' defaults
_CHUNK = {"cpu": 2**18}  # number of elements that fit into the cache
_CHUNK_ELSEWHERE = 2**26


@dataclass(frozen=True)
class AdamWStep:
    """Settings of one step of one adapter.

    Attributes:
        step: Number of the step, from 1.
        rate: Learning rate. The rate of the B matrices is `ratio` times as large (LoRA+).
        decay: Weight decay.
        max_norm: Maximum norm of the gradient; 0 disables clipping.
    """

    step: int
    rate: float
    decay: float
    max_norm: float
    ratio: float = 1.0


class StackedAdamW:
    """Optimizer with the same results as torch.optim.AdamW, element by element, and different settings for each row.

    Attributes:
        means, squares: First and second moments [adapters, width].
    """

    def __init__(self, stack: StackedWeights) -> None:
        self._stack = stack
        self.means, self.squares = torch.zeros_like(stack.weights), torch.zeros_like(stack.weights)

    @torch.no_grad()
    def step(self, steps: Sequence[AdamWStep]) -> Tensor:
        """Take one step of every adapter.

        Args:
            steps: Settings of each adapter's step, in the order of the stack.

        Returns:
            Norm of each adapter's gradient before clipping, [adapters].
        """
        stack, norms = self._stack, self._stack.norms
        limits = self._column([step.max_norm or math.inf for step in steps])
        shrink = (limits / (norms[:, None] + 1e-6)).clamp(max=1.0)
        for start, end, rates in (
            (0, stack.split, [step.rate for step in steps]),
            (stack.split, stack.weights.shape[1], [step.rate * step.ratio for step in steps]),
        ):
            decays = self._column([1 - rate * step.decay for rate, step in zip(rates, steps, strict=True)])
            sizes = self._column(
                [-rate / (1 - _BETAS[0] ** step.step) for rate, step in zip(rates, steps, strict=True)]
            )
            roots = self._column([math.sqrt(1 - _BETAS[1] ** step.step) for step in steps])
            width = max(1, _CHUNK.get(stack.device.type, _CHUNK_ELSEWHERE) // len(steps))
            for at in range(start, end, width):
                part = slice(at, min(at + width, end))
                weights, gradients = stack.weights[:, part], stack.gradients[:, part]
                means, squares = self.means[:, part], self.squares[:, part]
                gradients.mul_(shrink)
                weights.mul_(decays)
                means.lerp_(gradients, 1 - _BETAS[0])
                squares.mul_(_BETAS[1]).addcmul_(gradients, gradients, value=1 - _BETAS[1])
                weights.add_((means * sizes).div_(squares.sqrt().div_(roots).add_(_EPSILON)))
        return norms

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only the moments of these rows."""
        indices = torch.tensor(rows, dtype=torch.long, device=self._stack.device)
        self.means, self.squares = self.means.index_select(0, indices), self.squares.index_select(0, indices)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self._stack.device)[:, None]
