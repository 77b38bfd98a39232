"""A linear layer under several adapters: the base's product once for all rows, the adapters' in blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

SOURCE, TARGET = 0, 1


@dataclass(frozen=True)
class PerAdapterDropout:
    """LoRA's dropout of one adapter, from random numbers of its own: those of training alone.

    Attributes:
        rate: share of inputs that is zeroed.
        generator: on the device.
        lengths: of its own source and target, padded as alone; what a longer neighbour adds draws no numbers.
    """

    rate: float
    generator: torch.Generator
    lengths: tuple[int, int]

    def __call__(self, x: Tensor, side: int) -> Tensor:
        """[rows, t, in] as torch's dropout gives it, in float32 as peft has it; zeros behind its own length."""
        own = x[:, : self.lengths[side]].float()
        noise = torch.empty(own.shape, device=x.device).bernoulli_(1 - self.rate, generator=self.generator)
        return pad(own * noise.div_(1 - self.rate), (0, 0, 0, x.shape[1] - own.shape[1]))


class BatchRouting:
    """Which rows of the batch at hand belong to which adapters. All layers of an adapter group look here.

    Attributes:
        blocks: (adapters, rows of each) of neighbours that have equally many rows; -1 rows: all there are.
        order: numbers of the adapters as they come in the batch [m]; or as one piece of the stack, without a copy.
        drops: (number of the adapter, rows, its dropout or None) as they come; none where no adapter drops.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.order: Tensor | slice = slice(None)
        self.drops: list[tuple[int, int, PerAdapterDropout | None]] = []

    def send(
        self,
        rows: Sequence[tuple[int, int]],
        adapters: int,
        device: torch.device,
        drops: Sequence[PerAdapterDropout | None] = (),
    ) -> None:
        """The batch holds so many rows of each: (number of an adapter, rows), one after another, of `adapters` ones."""
        self.blocks = [(len(list(same)), count) for count, same in groupby(count for _, count in rows)]
        numbers = [number for number, _ in rows]
        whole = numbers == list(range(adapters))
        self.order = slice(None) if whole else torch.tensor(numbers, device=device)
        self.drops = [(*one, drop) for one, drop in zip(rows, drops, strict=True)] if any(drops) else []

    def send_all(self, adapter: int) -> None:
        """All rows belong to one adapter, however many there will be."""
        self.blocks, self.order, self.drops = [(1, -1)], slice(adapter, adapter + 1), []

    def drop(self, x: Tensor, side: int, adapted: Sequence[bool]) -> Tensor:
        """What the adapters of a layer are given: x, or of those with dropout what that leaves."""
        if not self.drops:
            return x
        parts = x.split([rows for _, rows, _ in self.drops])
        return torch.cat(
            [
                drop(part, side) if drop is not None and adapted[number] else part
                for (number, _, drop), part in zip(self.drops, parts, strict=True)
            ]
        )


class MultiLoraLinear(nn.Module):
    """y = x W' + s (x A) B, with A, B and s of the adapter that a row belongs to.

    Adapters of a smaller rank, or without this layer, have zeros in the columns of A and the rows of B that are left
    over. Their gradients are zero, too, so they stay zero under AdamW.

    Args:
        base: the frozen layer.
        route: of the group.
        a: [n, in, r] of n adapters.
        b: [n, r, out].
        scale: [n], float32.
        side: SOURCE or TARGET: whose positions it is given.
    """

    def __init__(
        self, base: nn.Linear, route: BatchRouting, a: Tensor, b: Tensor, scale: Tensor, side: int = SOURCE
    ) -> None:
        super().__init__()
        self.base, self.route, self.side = base, route, side
        self.adapted = [True] * len(scale)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("scale", scale, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The base's: T5 asks for its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """[rows, t, in] to [rows, t, out]."""
        parts: list[Tensor] = [self.a, self.b, self.get_buffer("scale")]
        order = self.route.order
        if isinstance(order, Tensor):
            parts = [part.index_select(0, order) for part in parts]
        elif order != slice(None):
            parts = [part[order] for part in parts]
        blocks, given = self.route.blocks, self.route.drop(x, self.side, self.adapted)
        if len(blocks) == 1:
            return self.base(x) + _product(given, *parts)
        several = [adapters for adapters, _ in blocks]
        inputs = given.split([adapters * rows for adapters, rows in blocks])
        deltas = [_product(*one) for one in zip(inputs, *(part.split(several) for part in parts), strict=True)]
        return self.base(x) + torch.cat(deltas)


def _product(x: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Equally many rows of each adapter: [n * rows, t, in] to [n * rows, t, out]."""
    delta = torch.bmm(torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a), b)
    # Under autocast the product is bf16; the scale is not rounded to it, as peft does not round its own either.
    return (delta * scale[:, None, None]).to(delta.dtype).view(*x.shape[:-1], b.shape[-1])
