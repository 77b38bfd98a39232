"""Adapters in the layout of the kernel: each row of a call may have one, which is added to its products."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_ft_kernels.blocks import LINE, Block
from lora_ft_kernels.matrices import TILE

_LANES, _FOUR = 16, 4  # floats of a vector, and bytes of a float


class _LowRank(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("parts", "tiles", "rank")),
        ("step", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("a", "a_scale", "b")),
    ]


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a product of x: B times A's product, which is rounded to bytes.

    The outputs are parts of equal width side by side, each with columns of A of its own.

    Attributes:
        a: int8 [inputs, parts * rank].
        a_scale: Scales of A's products, float32 [parts * rank].
        b: int8 [parts, rank, outputs / parts].
        b_scale: Scales of B's products, float32 [outputs].
        step: Fixed scale of x, or 0 for a scale per row. The latter multiplies the result, not A's products.
    """

    a: np.ndarray
    a_scale: np.ndarray
    b: np.ndarray
    b_scale: np.ndarray
    step: float = 0.0


class Adapter:
    """An adapter that calls of a kernel may use.

    Args:
        shapes: `Kernel.shapes`.
        changes: Changes of the layers, by number in `Weights.matrices`. The head has none.

    Raises:
        ValueError: A change does not fit the layer.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], changes: Mapping[int, LowRank]) -> None:
        packed = dict[int, list[np.ndarray]]()
        for number, change in sorted(changes.items()):
            parts, rank, width = change.b.shape
            shape = len(change.a), parts * width
            sizes = change.a.shape[1], change.a_scale.size, change.b_scale.size
            is_layer = number in range(len(shapes) - 1) and shape == shapes[number]
            if not is_layer or sizes != (parts * rank, parts * rank, shape[1]) or width % TILE:
                raise ValueError(f"a change {change.a.shape}, {change.b.shape} does not fit layer {number}")
            packed[number] = _packed(change)
        # in the order in which the layers are read
        self._block = Block((array.shape, array.dtype) for arrays in packed.values() for array in arrays)
        self._changes = (_LowRank * len(shapes))()
        for number, arrays in packed.items():
            parts, _, width = changes[number].b.shape
            fields = parts, width // TILE, len(arrays[0]) // parts, changes[number].step
            self._changes[number] = _LowRank(*fields, *map(self._block.copy, arrays))
        self.address = ctypes.addressof(self._changes)


def _packed(change: LowRank) -> list[np.ndarray]:
    """Return A, its scales, and B with its scales as the library reads them. Bytes are around 128."""
    parts, rank, width = change.b.shape
    spare = -rank % _FOUR
    a = np.pad(change.a.reshape(-1, parts, rank).transpose(1, 2, 0), ((0, 0), (0, spare), (0, -len(change.a) % LINE)))
    a_scale = np.pad(change.a_scale.reshape(parts, rank), ((0, 0), (0, spare))).reshape(-1)
    b = np.pad(change.b, ((0, 0), (0, spare), (0, 0))).reshape(parts, -1, _FOUR, width // TILE, TILE)
    b_scale = change.b_scale.astype(np.float32).reshape(-1, TILE)
    b = b.transpose(0, 3, 1, 4, 2).reshape(len(b_scale), -1).view(np.uint8) ^ np.uint8(128)
    arrays = [
        a.reshape(-1, a.shape[2]).view(np.uint8) ^ np.uint8(128),
        np.pad(a_scale, (0, -a_scale.size % _LANES)).astype(np.float32),
        np.concatenate([b_scale.view(np.uint8), b], axis=1),
    ]
    return [np.ascontiguousarray(array) for array in arrays]
