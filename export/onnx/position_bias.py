"""T5's relative position bias as a table with one row per distance, from which a graph gathers."""

from __future__ import annotations

import math

import numpy as np

from lora_ft.export.onnx.graph import Graph

MASKED = -1e9  # added to the score of a masked position


def bias_rows(weight: np.ndarray, buckets: int, far: int, *, causal: bool) -> np.ndarray:
    """Return the bias of every offset -far..far [2*far+1, heads], from a table [buckets, heads].

    All offsets beyond `far` share a bucket. A causal table has one more row, for masked keys ahead of the query.
    """
    rows = weight[bucket(np.arange(-far, far + 1), buckets, far, bidirectional=not causal)]
    if not causal:
        return rows
    return np.concatenate([rows, np.full((1, rows.shape[1]), MASKED, np.float32)])


def index_rows(g: Graph, query: str, key: str, far: int, *, causal: bool) -> str:
    """Append the row numbers [b,q,k] in `bias_rows`, for int64 positions of queries [b,q] and keys [b,k]."""
    offset = g.op("Sub", g.op("Unsqueeze", key, g.ints(1)), g.op("Unsqueeze", query, g.ints(2)))
    index = g.op("Add", g.op("Clip", offset, g.scalar(-far), g.scalar(far)), g.scalar(far))
    if not causal:
        return index
    return g.op("Where", g.op("Greater", offset, g.scalar(0)), g.scalar(2 * far + 1), index)


def bucket(offset: np.ndarray, buckets: int, max_distance: int, *, bidirectional: bool) -> np.ndarray:
    """Return T5's bucket of each key-minus-query offset, half exact, half logarithmic (arXiv 1910.10683, 2.1)."""
    base: np.ndarray | int = 0
    if bidirectional:
        buckets //= 2
        base, distance = (offset > 0) * buckets, np.abs(offset)
    else:
        distance = -np.minimum(offset, 0)
    exact = buckets // 2
    # float32 as in transformers, since rounding decides the bucket at an edge
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (buckets - exact)).astype(np.int64)
    return base + np.where(distance < exact, distance, np.minimum(far, buckets - 1))
