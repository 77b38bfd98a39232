"""Matrices in the layout of the kernel: tiles of 32 outputs, whose weights lie in the order of the products.

Of each tile, four inputs of all outputs lie side by side. In 4 bits, the next four are in the upper halves of bytes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from lora_ft_kernels.blocks import LINE, Block, Shape

TILE = 32  # outputs that are computed together
_ZERO = 128  # of bytes
_PREVIEW_GROUP = 128
_TOGETHER = 256  # outputs that are rounded together, while they are in the cache


@dataclass(frozen=True)
class Matrix:
    """Weights of a linear layer.

    Attributes:
        values: int8 [inputs, outputs], or if `group`: uint8 [outputs, inputs * bits / 8], around the middle of their
            range; the lower half of a byte is the first 4-bit value.
        scales: Float32 [outputs], or if `group`: [outputs, inputs / group].
        bits: 8, or 4 with a group.
        group: Inputs that share a scale, a multiple of 16, or 0. Their input then has a scale per row and group, too.
        step: Fixed scale of the input, or 0 for a scale per row.

    Raises:
        ValueError: The values do not fit the scales.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int = 8
    group: int = 0
    step: float = 0.0

    def __post_init__(self) -> None:
        if self.group:
            fits = self.values.size * 8 == self.scales.size * self.group * self.bits and self.group % 16 == 0
        else:
            fits = self.bits == 8 and self.scales.shape == self.values.shape[1:]
        if not fits or self.values.itemsize != 1:
            raise ValueError(
                f"values {self.values.shape} and scales {self.scales.shape} are no matrix of {self.bits} bits in "
                f"groups of {self.group}"
            )

    @property
    def inputs(self) -> int:
        """Size of a row of the layer's input."""
        return self.scales.shape[1] * self.group if self.group else len(self.values)

    @property
    def outputs(self) -> int:
        """Size of a row of its output."""
        return len(self.scales)

    @property
    def groups(self) -> int:
        """Scales of an output."""
        return self.scales.size // self.outputs

    def rows(self) -> np.ndarray:
        """Return the weights around the middle of their range, uint8 [outputs, inputs]."""
        if not self.group:
            return np.ascontiguousarray(self.values.T).view(np.uint8) ^ np.uint8(_ZERO)
        stored = np.ascontiguousarray(self.values).reshape(self.outputs, -1)
        return stored if self.bits == 8 else np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1)


class PackedMatrix(ctypes.Structure):
    """A matrix as the library reads it."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("outputs", "inputs", "bits", "group", "stride", "number")),
        ("step", ctypes.c_float),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


def shapes_of(matrix: Matrix) -> list[Shape]:
    """Return the shapes of the arrays that a matrix takes from a block."""
    tiles, stride = -(-matrix.outputs // TILE), matrix.inputs + -matrix.inputs % LINE
    fours = tiles, stride * matrix.bits // 32, TILE
    return [(fours, np.dtype(np.uint32)), ((tiles, matrix.groups, TILE), np.dtype(np.float32))]


def pack(block: Block, number: int, matrix: Matrix) -> PackedMatrix:
    """Return a matrix with its number among those of its stack, packed into a block."""
    values, scales = (block.take(shape) for shape in shapes_of(matrix))
    group = matrix.inputs // matrix.groups
    rows = _padded(matrix.rows(), LINE, 1 << (matrix.bits - 1))
    fours = rows.view(np.uint32)
    if matrix.bits == 4:
        fours = fours[:, ::2] | fours[:, 1::2] << 4
    for to, rows_of_tiles in (values, fours), (scales, _padded(matrix.scales.reshape(matrix.outputs, -1), 1, 0)):
        to[...] = rows_of_tiles.reshape(len(to), TILE, -1).transpose(0, 2, 1)
    sizes = matrix.outputs, matrix.inputs, matrix.bits, group, rows.shape[1], number
    return PackedMatrix(*sizes, matrix.step, values.ctypes.data, scales.ctypes.data)


def preview_of(head: Matrix) -> tuple[Matrix, np.ndarray]:
    """Return a matrix of bytes rounded to 4 bits, and the length of the loss of each output, float32 [outputs]."""
    group = head.inputs // head.groups
    group = group if group % _PREVIEW_GROUP else _PREVIEW_GROUP
    rows, groups = head.rows(), head.inputs // group
    scales = head.scales.reshape(head.outputs, -1).astype(np.float32).repeat(groups // head.groups, axis=1)
    values, losses = np.empty((head.outputs, head.inputs // 2), np.uint8), np.empty(head.outputs, np.float32)
    for first in range(0, head.outputs, _TOGETHER):
        some = slice(first, first + _TOGETHER)
        rest = (rows[some] ^ np.uint8(_ZERO)).view(np.int8).reshape(-1, groups, group).astype(np.float32)
        units = np.abs(rest).max(axis=-1, initial=1, keepdims=True) / np.float32(8)  # bytes for each step of 4 bits
        fours = np.minimum((rest / units + np.float32(8.5)).astype(np.uint8), 15)
        rest -= (fours.view(np.int8) - 8) * units
        losses[some] = np.sqrt(np.einsum("ogi,ogi,og->o", rest, rest, scales[some] ** 2))
        scales[some] *= units[..., 0]
        pairs = fours.reshape(len(fours), -1, 2)
        values[some] = pairs[..., 0] | pairs[..., 1] << 4
    return Matrix(values, scales, 4, group), losses


def _padded(rows: np.ndarray, columns: int, value: int) -> np.ndarray:
    """Return rows [outputs, n] with more of them up to whole tiles, and with columns up to a multiple of `columns`."""
    spare = -len(rows) % TILE, -rows.shape[1] % columns
    return np.pad(rows, [(0, each) for each in spare], constant_values=value) if any(spare) else rows
