"""Encode long sources a few at a time, so that memory grows with their number as their keys and values do.

The attention scores of an encoder are [b, heads, s, s] floats: 100 MB for one source of 2,048 tokens of FLAN-T5-small,
3.2 GB for 32. ONNX Runtime's attention in blocks, which would not store them, takes no position bias. A few such
sources fill the cores, so fewer at a time cost no speed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lora_ft.export.runtime.cache import Adapters, Source
from lora_ft.export.runtime.session import on_lines, ort_value

SCORES = 2**29  # bytes; 20 sources of 2,048 tokens of FLAN-T5-small take 2.5 instead of 5.2 GB, in 0.95 of the time
LARGE = 2**26  # bytes worth returning to the system; allocating them again costs 1 ms per 10 MB

# Sources are padded to a multiple of this length, in tokens. Kernels add in groups of 8 floats (an AVX2 register) and
# add the remainder in another order, so the last bits of a source of 33 tokens would depend on its neighbors.
LANES = 8


def padded(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and mask [b, s] with s a multiple of `LANES`, so that a row has the same bits however padded."""
    padding = ((0, 0), (0, -ids.shape[1] % LANES))
    return np.pad(ids, padding), np.pad(mask, padding)


def score_bytes(heads: int, rows: int, length: int) -> int:
    """Return the size of an encoder's attention scores, in bytes."""
    return rows * heads * length * length * 4


def rows_at_once(heads: int, length: int) -> int:
    """Return how many sources of `length` tokens are encoded in a call."""
    return max(SCORES // max(score_bytes(heads, 1, length), 1), 1)


def encode_in_parts(
    encode: Callable[..., Source], ids: np.ndarray, mask: np.ndarray, at_once: int, adapters: Adapters | None
) -> Source:
    """Return the sources of all rows, in memory of their own.

    Args:
        encode: Returns the sources of some of the rows, given their tokens, mask and adapters.
        ids, mask: Tokens of all rows and their mask, int64 [b, s].
        at_once: Number of rows of a call.
        adapters: Adapters of all rows.
    """
    wholes: list[np.ndarray] = []
    for begin in range(0, len(ids), at_once):
        rows = np.arange(begin, min(begin + at_once, len(ids)))
        part = encode(ids[rows], mask[rows], adapters and adapters.take(rows))
        values = [value.numpy() for value in part.values]
        wholes = wholes or [on_lines(np.empty, (len(ids), *value.shape[1:]), value.dtype) for value in values]
        for whole, value in zip(wholes, values, strict=True):
            whole[begin : begin + part.rows] = value
    return Source(len(ids), [ort_value(whole) for whole in wholes], adapters)
