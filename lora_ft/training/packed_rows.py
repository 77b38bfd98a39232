"""Rows of a batch without their padding: all tokens one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Packed tokens are filled up to a multiple of this. oneDNN compiles each size of a matrix product on first use, which
# takes half a millisecond; a step has about 90 products of different sizes.
_MULTIPLE = 32


@dataclass(frozen=True)
class PackedRows:
    """Lengths of the rows of a batch, to convert between packed and padded tensors.

    Attributes:
        lengths: Number of tokens of each row.
        width: Length to which the rows are padded.
    """

    lengths: list[int]
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> PackedRows:
        """Return the rows of an attention mask [rows, width], whose padding is on the right."""
        return cls(mask.sum(1).tolist(), mask.shape[1])

    @property
    def filler(self) -> int:
        """Number of unused tokens after the last row."""
        return -sum(self.lengths) % _MULTIPLE

    def pack(self, padded: Tensor) -> Tensor:
        """Return [tokens, ...] of a padded tensor [rows, width, ...], with zeros as filler."""
        rows = [row[:length] for row, length in zip(padded, self.lengths, strict=True)]
        return torch.cat([*rows, padded.new_zeros(self.filler, *padded.shape[2:])])

    def pad(self, packed: Tensor) -> Tensor:
        """Return [rows, width, ...] of a packed tensor [tokens, ...], with zeros as padding."""
        padded = packed.new_zeros(len(self.lengths), self.width, *packed.shape[1:])
        for row, tokens in zip(padded, packed.split([*self.lengths, self.filler]), strict=False):
            row[: len(tokens)] = tokens
        return padded

    def is_padding(self) -> Tensor:
        """Return the positions of padding as bool [rows, width]."""
        return torch.arange(self.width) >= torch.tensor(self.lengths).unsqueeze(1)
