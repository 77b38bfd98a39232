"""Tokenize examples and batch them by length, since padding is wasted compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from lora_ft.core.errors import DataError, LoraFtError, UsageError, raised_as
from lora_ft.core.tokenizer import IGNORED, Tokenizer, pad
from lora_ft.data.splits import Example
from lora_ft.tasks.lengths import Lengths

if TYPE_CHECKING:
    from torch import Tensor

_FILL = 0
MULTIPLE = 8  # lengths are padded to a multiple of this, the width of vector units and tensor cores
_GROUP = 16  # tokens; sources are grouped in steps of this length, and sorted by target length within a group
_POOL = 200  # batches whose rows are sorted together: 8 % of DialogSum is then padding, and 16 % with a pool of 16


@dataclass(frozen=True)
class Encoded:
    """A tokenized example.

    Attributes:
        input_ids: Token ids of the prompt, ending with </s>.
        labels: Token ids of the target, ending with </s>.
        references: Texts against which the answer is scored.
    """

    input_ids: list[int]
    labels: list[int]
    references: tuple[str, ...] = ()


@raised_as(DataError)
def encode(examples: Sequence[Example], tokenizer: Tokenizer, lengths: Lengths, split: str) -> list[Encoded]:
    """Tokenize prompts and targets.

    Prompts are cut at lengths.source. The setting lengths.long_targets decides what happens to longer targets.

    Raises:
        LoraFtError: Targets are longer than lengths.target, and lengths.long_targets is "error".
        UsageError: All targets are too long, so that no example is left.
    """
    sources = tokenizer.encode([example.prompt for example in examples], lengths.source)
    targets = tokenizer.encode_targets([example.target for example in examples])
    long = [len(target) for target in targets if len(target) > lengths.target]
    if long and lengths.long_targets == "error":
        raise LoraFtError(
            f"{len(long):,} of {len(targets):,} {split} targets are longer than lengths.target = {lengths.target} "
            f"tokens (the longest has {max(long):,})",
            "raise lengths.target, or set lengths.long_targets to cut or drop",
        )
    if long and lengths.long_targets == "cut":
        targets = [
            target if len(target) <= lengths.target else [*target[: lengths.target - 1], target[-1]]
            for target in targets
        ]
    rows = [
        Encoded(source, target, example.references)
        for source, target, example in zip(sources, targets, examples, strict=True)
    ]
    fitting = [row for row in rows if len(row.labels) <= lengths.target]
    if rows and not fitting:
        raise UsageError(
            f"all {len(rows):,} {split} targets are longer than lengths.target = {lengths.target} tokens and dropped",
            f"raise lengths.target (the shortest has {min(long):,})",
        )
    return fitting


def collate(rows: Sequence[Encoded], start: int) -> dict[str, Tensor]:
    """Return a padded batch: input_ids, attention_mask [b,s]; labels, decoder_input_ids [b,t], all int64.

    Args:
        rows: Examples of the batch.
        start: Token id that the decoder begins with.
    """
    labels = pad([row.labels for row in rows], IGNORED, MULTIPLE)
    # Padding has no effect: the mask hides it in sources, and positions after a target have no loss.
    before = np.concatenate([np.full((len(rows), 1), start), labels[:, :-1]], axis=1)
    arrays = {
        "input_ids": pad([row.input_ids for row in rows], _FILL, MULTIPLE),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0, MULTIPLE),
        "labels": labels,
        "decoder_input_ids": np.where(before == IGNORED, _FILL, before),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class LengthSampler(Sampler[int]):
    """A sampler of row numbers in which each `batch_size` consecutive rows have similar lengths.

    Rows are shuffled and sorted by length in pools of many batches; then the batches are shuffled. For given rows, the
    order depends on the seed, the epoch and the global batch size only, not on the number of processes.
    """

    def __init__(self, rows: Sequence[Encoded], batch_size: int, seed: int) -> None:
        self._keys = [(len(row.input_ids) // _GROUP, len(row.labels), len(row.input_ids)) for row in rows]
        self._batch_size, self._seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._keys)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self.epoch))
        order = random.permutation(len(self)).tolist()
        size = self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=self._keys.__getitem__)
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        short = [batch for batch in batches if len(batch) < size]
        batches = [batch for batch in batches if len(batch) == size]
        for i in random.permutation(len(batches)):
            yield from batches[i]
        for batch in short:  # last, because a short batch would shift all later ones
            yield from batch


def padding_share(rows: Sequence[Encoded], global_batch: int, batch_size: int, seed: int) -> float:
    """Return the share of padding in an epoch's positions, for global batches cut into batches of `batch_size`."""
    order = list(LengthSampler(rows, global_batch, seed))
    real = padded = 0
    for start in range(0, len(order), batch_size):
        counts = count_positions(collate([rows[i] for i in order[start : start + batch_size]], _FILL))
        real, padded = real + counts[0], padded + counts[1]
    return 1 - real / padded


def count_positions(batch: dict[str, Any]) -> tuple[int, int]:
    """Return the number of unpadded positions and of all positions in a batch, sources and targets together."""
    real = int(batch["attention_mask"].sum()) + int((batch["labels"] != IGNORED).sum())
    return real, batch["attention_mask"].numel() + batch["labels"].numel()
