"""Joint batches of several adapters, where lengths are similar enough for that to save time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_ft.core.tokenizer import IGNORED
from lora_ft.training.packed_rows import PackedRows

# Fixed cost of a pass through the model, in positions computed in the same time. Measured with the prototype on two
# cores: 18 samples/s of 24+16 tokens alone and 38 with four adapters.
_OVERHEAD, _OVERHEAD_ELSEWHERE = {"cpu": 1_000}, 10_000
# Fill values of padding. The model ignores padded positions; see `collate`.
_FILL = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED, "decoder_input_ids": 0}
_SOURCES = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class MemberBatch:
    """Batch that one adapter contributes to a pass.

    Attributes:
        adapter: Number of the adapter.
        batch: Tensors from `lora_ft.data.batching.collate`.
    """

    adapter: int
    batch: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.batch["input_ids"])

    @property
    def lengths(self) -> tuple[int, int]:
        """Padded lengths of source and target, in tokens."""
        return self.batch["input_ids"].shape[1], self.batch["labels"].shape[1]


def plan_passes(shares: Sequence[MemberBatch], device: str) -> list[list[MemberBatch]]:
    """Return the fastest distribution of shares over passes. Each pass is in the order of the adapters.

    Time is counted in positions: all computed positions, including padding, plus an overhead for each pass. So shares
    of similar length go together.
    """
    overhead = _OVERHEAD.get(device, _OVERHEAD_ELSEWHERE)
    ordered = sorted(shares, key=lambda share: (share.lengths, share.adapter))
    sizes = [(share.rows, *share.lengths) for share in ordered]
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first n shares: cost, and start of their last pass
    for end in range(1, len(ordered) + 1):
        rows = source = target = 0
        candidates = []
        for start in reversed(range(end)):
            rows, source, target = rows + sizes[start][0], max(source, sizes[start][1]), max(target, sizes[start][2])
            candidates.append((best[start][0] + overhead + rows * (source + target), start))
        best.append(min(candidates))
    passes, end = [], len(ordered)
    while end:
        start = best[end][1]
        passes.append(sorted(ordered[start:end], key=lambda share: share.adapter))
        end = start
    return passes[::-1]


def concatenate(shares: Sequence[MemberBatch], device: torch.device) -> dict[str, Tensor]:
    """Return one batch with the rows of all shares, padded to the same lengths, on a device."""
    longest = [max(share.lengths[side] for share in shares) for side in (0, 1)]
    batch = {}
    for name, fill in _FILL.items():
        length = longest[0] if name in _SOURCES else longest[1]
        parts = [pad(share.batch[name], (0, length - share.batch[name].shape[1]), value=fill) for share in shares]
        batch[name] = torch.cat(parts).to(device)
    return batch


def pack(shares: Sequence[MemberBatch]) -> tuple[dict[str, Tensor], tuple[list[slice], list[slice]]]:
    """Return one batch with the rows of all shares for a model that packs rows, and the tokens of each share.

    A row without a loss follows those of a share. It fills up the share's tokens, as `PackedRows` does at the end of a
    batch.

    Returns:
        The batch on the CPU, and each share's tokens among the packed sources and the packed targets.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in (*_FILL, "decoder_attention_mask")}
    spans: tuple[list[slice], list[slice]] = [], []
    for share in shares:
        batch = {**share.batch, "decoder_attention_mask": (share.batch["labels"] != IGNORED).long()}
        sides = [PackedRows.of(batch[name]) for name in ("attention_mask", "decoder_attention_mask")]
        for own, side in zip(spans, sides, strict=True):
            start = own[-1].stop if own else 0
            own.append(slice(start, start + sum(side.lengths) + side.filler))
        for name, part in batch.items():
            value = 1 if name.endswith("mask") else _FILL[name]
            rows[name] += [*part, torch.full((sides[name not in _SOURCES].filler,), value, dtype=part.dtype)]
    return {
        name: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=_FILL.get(name, 0))
        for name, parts in rows.items()
    }, spans
