"""Blocks of memory as the library reads them: what is read one after another lies one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

LINE = 64  # bytes of a line of the processor's cache, and of a vector
_PAGE = 2**21  # bytes of a huge page, which numpy asks for where the system has them

Shape = tuple[tuple[int, ...], np.dtype]  # of an array, and its type


class Block:
    """Memory of arrays that lie one after another, each at a multiple of 64 bytes.

    Args:
        shapes: Shapes of all arrays, in order.
    """

    def __init__(self, shapes: Iterable[Shape]) -> None:
        size = sum(_up(_bytes(shape), LINE) for shape in shapes)
        unit = _PAGE if size > _PAGE else LINE
        memory = np.empty(_up(size, unit) + unit, np.uint8)
        self._rest = memory[-memory.ctypes.data % unit :]

    def take(self, shape: Shape) -> np.ndarray:
        """Return the next array, not initialized. It keeps the block alive."""
        size = _bytes(shape)
        taken, self._rest = self._rest[:size], self._rest[_up(size, LINE) :]
        return taken.view(shape[1]).reshape(shape[0])

    def copy(self, array: np.ndarray) -> int:
        """Return the address of a copy as the next array."""
        copy = self.take((array.shape, array.dtype))
        copy[...] = array
        return int(copy.ctypes.data)


def _bytes(shape: Shape) -> int:
    return math.prod(shape[0]) * shape[1].itemsize


def _up(size: int, unit: int) -> int:
    """Return the least multiple of a unit that is not below a size."""
    return size + -size % unit
