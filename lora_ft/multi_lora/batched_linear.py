"""Linear layer with several adapters: one product with the base for all rows, and blocked products for the adapters."""

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
    """LoRA dropout of one adapter, with the same random numbers as in training alone.

    Attributes:
        rate: Share of inputs that is set to zero.
        generator: Random generator of this adapter, on the device.
        lengths: Padded source and target lengths of its own batch. Padding for longer neighbors draws no numbers.
    """

    rate: float
    generator: torch.Generator
    lengths: tuple[int, int]

    def __call__(self, x: Tensor, side: int) -> Tensor:
        """Return x [rows, t, in] after dropout, in float32 as in peft; zeros beyond the adapter's own length."""
        inputs = x[:, : self.lengths[side]].float()
        noise = torch.empty(inputs.shape, device=x.device).bernoulli_(1 - self.rate, generator=self.generator)
        return pad(inputs * noise.div_(1 - self.rate), (0, 0, 0, x.shape[1] - inputs.shape[1]))


class BatchRouting:
    """Assignment of the current batch's rows to adapters, shared by all layers of an adapter group.

    Attributes:
        blocks: (adapters, rows of each) for consecutive adapters with equally many rows; -1 rows means all rows.
        order: Numbers of the adapters in batch order [m], or a slice of the stack, which needs no copy.
        drops: (adapter number, rows, dropout or None) in batch order; empty if no adapter has dropout.
        numbers: Numbers of the adapters in the order of a packed batch; not set for padded rows.
        spans: Tokens of each of `numbers` among the packed sources and targets.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.order: Tensor | slice = slice(None)
        self.drops: list[tuple[int, int, PerAdapterDropout | None]] = []
        self.numbers: list[int] = []
        self.spans: tuple[list[slice], list[slice]] = [], []

    def send(
        self,
        rows: Sequence[tuple[int, int]],
        adapters: int,
        device: torch.device,
        drops: Sequence[PerAdapterDropout | None] = (),
    ) -> None:
        """Set the routing of the next batch.

        Args:
            rows: (adapter number, number of rows) in batch order.
            adapters: Number of adapters in the stack.
            device: Device of the batch.
            drops: Dropout of each entry of `rows`, or None; empty if no adapter has dropout.
        """
        self.blocks = [(len(list(same)), count) for count, same in groupby(count for _, count in rows)]
        numbers = [number for number, _ in rows]
        whole = numbers == list(range(adapters))
        self.order = slice(None) if whole else torch.tensor(numbers, device=device)
        self.drops = [(*assignment, drop) for assignment, drop in zip(rows, drops, strict=True)] if any(drops) else []

    def send_packed(self, numbers: Sequence[int], spans: tuple[list[slice], list[slice]]) -> None:
        """Set the routing of the next batch of packed rows, see `numbers` and `spans`."""
        self.numbers, self.spans = list(numbers), spans

    def send_all(self, adapter: int) -> None:
        """Assign all rows to one adapter, for any batch size, padded or packed."""
        self.blocks, self.order, self.drops = [(1, -1)], slice(adapter, adapter + 1), []
        self.numbers, self.spans = [adapter], ([slice(None)], [slice(None)])

    def drop(self, x: Tensor, side: int, adapted: Sequence[bool]) -> Tensor:
        """Return the input of a layer's adapters: x, after dropout for the adapters that have it."""
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
    """Linear layer that computes y = x W' + s (x A) B, with A, B and s of each row's adapter.

    Unused columns of A and rows of B are zero for adapters of a smaller rank or without this layer. Their gradients
    are zero, too, so they stay zero under AdamW.

    Args:
        base: Frozen layer.
        route: Routing of the group.
        a: A matrices of n adapters, [n, in, r].
        b: B matrices, [n, r, out].
        scale: Scales, [n], float32.
        side: SOURCE or TARGET, depending on whose positions the layer receives.
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
        """Weight of the base layer. T5 reads its dtype."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [rows, t, out] for the input [rows, t, in]."""
        parts: list[Tensor] = [self.a, self.b, self.get_buffer("scale")]
        order = self.route.order
        if isinstance(order, Tensor):
            parts = [part.index_select(0, order) for part in parts]
        elif order != slice(None):
            parts = [part[order] for part in parts]
        blocks, dropped = self.route.blocks, self.route.drop(x, self.side, self.adapted)
        if len(blocks) == 1:
            return self.base(x) + _product(dropped, *parts)
        several = [adapters for adapters, _ in blocks]
        adapter_inputs = dropped.split([adapters * rows for adapters, rows in blocks])
        deltas = [
            _product(*block) for block in zip(adapter_inputs, *(part.split(several) for part in parts), strict=True)
        ]
        return self.base(x) + torch.cat(deltas)


def _product(x: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the adapters' outputs [n * rows, t, out] for x [n * rows, t, in], with equally many rows per adapter."""
    delta = torch.bmm(torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a), b)
    # Under autocast the product is bf16. The scale stays float32, as in peft.
    return (delta * scale[:, None, None]).to(delta.dtype).view(*x.shape[:-1], b.shape[-1])
