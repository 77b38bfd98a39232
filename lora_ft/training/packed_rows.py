"""Rows of a batch without their padding: all tokens one after another."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

# Packed tokens are filled up to a multiple of this. oneDNN compiles each size of a matrix product on first use, which
# takes half a millisecond; a step has about 90 products of different sizes.
MULTIPLE = 32


@dataclass(frozen=True)
class PackedRows:
    """Lengths of the rows of a batch.

    Attributes:
        lengths: Number of tokens of each row.
    """

    lengths: list[int]

    @classmethod
    def of(cls, mask: Tensor) -> PackedRows:
        """Return the rows of an attention mask [rows, width], whose padding is on the right."""
        return cls(mask.sum(1).tolist())

    @property
    def filler(self) -> int:
        """Number of unused tokens after the last row."""
        return -sum(self.lengths) % MULTIPLE

    def spans(self) -> list[slice]:
        """Return the packed tokens of each row."""
        ends = list(accumulate(self.lengths))
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def pack(self, padded: Tensor) -> Tensor:
        """Return [tokens, ...] of a padded tensor [rows, width, ...], with zeros as filler."""
        rows = [row[:length] for row, length in zip(padded, self.lengths, strict=True)]
        return torch.cat([*rows, padded.new_zeros(self.filler, *padded.shape[2:])])
