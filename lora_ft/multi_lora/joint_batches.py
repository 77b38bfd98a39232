"""Batches of several adapters made one, where their lengths are near enough for that to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_ft.core.tokenizer import IGNORED

# Positions in whose time a pass through the model begins and ends, whatever it computes. From the prototype on two
# cores: 18 samples/s of 24+16 tokens alone and 38 with four adapters.
_OVERHEAD, _OVERHEAD_ELSEWHERE = {"cpu": 1_000}, 10_000
# What fills up tokens is seen by nobody, see `collate`.
_FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED, "decoder_input_ids": 0}


@dataclass(frozen=True)
class MemberBatch:
    """What one adapter gives to a pass.

    Attributes:
        adapter: its number.
        batch: from `lora_ft.data.batching.collate`.
    """

    adapter: int
    batch: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.batch["input_ids"])

    @property
    def lengths(self) -> tuple[int, int]:
        """Of its longest source and target, padded."""
        return self.batch["input_ids"].shape[1], self.batch["labels"].shape[1]


def plan_passes(shares: Sequence[MemberBatch], device: str) -> list[list[MemberBatch]]:
    """The passes that take the least time: shares of like length together, each pass in the order of the adapters.

    Time is counted in positions: those that are computed, padding too, and an overhead for each pass.
    """
    overhead = _OVERHEAD.get(device, _OVERHEAD_ELSEWHERE)
    ordered = sorted(shares, key=lambda share: (share.lengths, share.adapter))
    sizes = [(share.rows, *share.lengths) for share in ordered]
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first so many: cost, and where their last pass begins
    for end in range(1, len(ordered) + 1):
        rows = source = target = 0
        ways = []
        for start in reversed(range(end)):
            rows, source, target = rows + sizes[start][0], max(source, sizes[start][1]), max(target, sizes[start][2])
            ways.append((best[start][0] + overhead + rows * (source + target), start))
        best.append(min(ways))
    passes, end = [], len(ordered)
    while end:
        start = best[end][1]
        passes.append(sorted(ordered[start:end], key=lambda share: share.adapter))
        end = start
    return passes[::-1]


def concatenate(shares: Sequence[MemberBatch], device: torch.device) -> dict[str, Tensor]:
    """One batch of all, padded alike, on a device."""
    longest = [max(share.lengths[side] for share in shares) for side in (0, 1)]
    found = {}
    for name, fill in _FILL.items():
        length = longest[0] if name in ("input_ids", "attention_mask") else longest[1]
        parts = [pad(share.batch[name], (0, length - share.batch[name].shape[1]), value=fill) for share in shares]
        found[name] = torch.cat(parts).to(device)
    return found
