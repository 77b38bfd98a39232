"""Tokens of a draft as rows of their own, so that checking several tokens has the bits of single steps.

Products with weights return equal bits for several tokens and for several rows, in the formats that promise so
(`lora_ft.export.precision`). Attention does not: it adds in another order for several queries than for one. So every
token of a draft becomes a row with one query, whose cache is that of the draft's row up to the token. For
self-attention, these caches are copied, since GroupQueryAttention takes them side by side. They are short, like
answers. For cross-attention, the rows share the keys and values of their source. MultiHeadAttention cannot share them,
but broadcast products of single queries have the same bits.
"""

from __future__ import annotations

import numpy as np

from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.graph import INT32, MS, Graph
from lora_ft.export.onnx.model_parts import KeyValue
from lora_ft.export.onnx.position_bias import MASKED


class Draft:
    """Several tokens of each row, as rows of one token.

    Args:
        g: Graph to append to.
        tokens: Tokens [b,q], int64.
        lengths: Number of tokens before them in each row, int64 [b], or [1] if all are equal.

    Attributes:
        tokens: The tokens [b,q].
        ids: The tokens [b*q,1].
        position: Position of each token [b,q], int64.
        lengths: Number of tokens before each token, int64 [b*q].
    """

    def __init__(self, g: Graph, tokens: str, lengths: str) -> None:
        self._g, self.tokens = g, tokens
        count = g.size(tokens, 1)
        offset = g.op("Range", g.scalar(0), count, g.scalar(1))
        position = g.op("Add", g.op("Unsqueeze", lengths, g.ints(1)), offset)
        self.position = g.op("Expand", position, g.op("Shape", tokens))
        self.lengths = g.op("Reshape", self.position, g.ints(-1))
        self.ids = g.op("Reshape", tokens, g.ints(-1, 1))
        self._row = g.op("Div", g.op("Range", g.scalar(0), g.op("Size", tokens), g.scalar(1)), count)
        self._longest = g.op("Add", g.op("ReduceMax", self.lengths), g.ints(1))  # [1]

    @property
    def ends(self) -> tuple[str, str]:
        """Position of each token [b*q], and the largest number of tokens with it, as GroupQueryAttention takes them."""
        g = self._g
        total = g.once("longest", lambda: g.op("Cast", g.op("Squeeze", self._longest), to=INT32))
        return g.once("last", lambda: g.op("Cast", self.lengths, to=INT32)), total

    def repeat(self, cache: str) -> str:
        """Return the cache of each token's row [b*q,heads,longest,d_kv], from that of all rows [b,heads,room,d_kv]."""
        g = self._g
        return g.op("Gather", g.op("Slice", cache, g.ints(0), self._longest, g.ints(2)), self._row, axis=0)

    def attend_source(self, query: str, source: KeyValue, mask: str, a: Architecture) -> str:
        """Return the cross-attention [b,q,width] of each query [b,q,width] alone.

        Args:
            query: Queries.
            source: Keys and values of the rows' sources [b,heads,s,d_kv].
            mask: Mask of the sources [b,s], int64.
            a: Architecture of the model.
        """
        g = self._g
        bias = g.once(f"bias of {mask}", lambda: self._bias(mask))
        apart = g.op("Reshape", query, g.ints(0, 0, a.heads, 1, a.d_kv))
        key, value = (g.op("Unsqueeze", name, g.ints(1)) for name in (source.key, source.value))
        scores = g.op("Add", g.op("FusedMatMul", apart, key, domain=MS, transB=1), bias)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        return g.op("Reshape", mixed, g.ints(0, 0, a.width))

    def _bias(self, mask: str) -> str:
        """Return what MultiHeadAttention adds to the scores of a masked source, [b,1,1,1,s]."""
        g = self._g
        zero, far = (g.constant(np.float32(value), f"float.{value:g}") for value in (0.0, MASKED))
        return g.op("Unsqueeze", g.op("Where", g.op("Equal", mask, g.scalar(0)), far, zero), g.ints(1, 2, 3))
