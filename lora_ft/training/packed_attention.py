"""Attention of T5 over packed rows, a few rows at a time.

transformers pads all rows to the longest, and adds the position bias and the mask to all scores in float32, in passes
over memory: 31 MB each for 8 rows of 400 tokens. Here rows of a chunk are padded to the longest of the chunk, the bias
is added inside the matrix product, and the scores stay in the cache until they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_ft.training.packed_rows import PackedRows

_SCORES = 1_000_000  # computed at a time: 2 MB
_HIDDEN = -1e30  # score of a hidden position, whose probability is then 0
_MULTIPLE = 16  # of queries and keys; vectors hold 32 bf16 numbers, but short rows would double


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows whose scores are computed together.

    Attributes:
        queries, keys: Tokens of each row among the packed queries and the packed keys.
        bias: Added to the scores, bf16 [rows, heads, queries, keys].
    """

    queries: list[slice]
    keys: list[slice]
    bias: Tensor

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of queries and keys to which the rows are padded."""
        return self.bias.shape[2], self.bias.shape[3]


def padded_width(rows: PackedRows) -> int:
    """Return the largest number of keys to which `attention_chunks` pads a row."""
    return _rounded(max(rows.lengths))


def attention_chunks(queries: PackedRows, keys: PackedRows, positions: Tensor, *, is_causal: bool) -> list[Chunk]:
    """Return all rows as chunks.

    Args:
        queries, keys: Rows that attend, and rows that they attend to.
        positions: Position bias [heads, queries, keys], for as many keys as `padded_width` returns.
        is_causal: True if a query sees no later key.
    """
    positions = positions.bfloat16()
    if is_causal:
        later = torch.ones(positions.shape[1:], dtype=torch.bool).triu(1)
        positions = positions.masked_fill(later, _HIDDEN)
    spans = list(zip(queries.spans(), keys.spans(), strict=True))
    chunks = []
    while spans:
        count = next(n for n in range(len(spans), 0, -1) if n == 1 or _scores(positions, spans[:n]) <= _SCORES)
        part, spans = spans[:count], spans[count:]
        height, width = _widths(part)
        lengths = torch.tensor([key.stop - key.start for _, key in part])
        hidden = torch.arange(width) >= lengths[:, None, None, None]
        bias = positions[:, :height, :width].masked_fill(hidden, _HIDDEN)
        chunks.append(Chunk([query for query, _ in part], [key for _, key in part], bias))
    return chunks


def _widths(spans: Sequence[tuple[slice, slice]]) -> tuple[int, int]:
    queries, keys = (max(span.stop - span.start for span in side) for side in zip(*spans, strict=True))
    return _rounded(queries), _rounded(keys)


def _rounded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _scores(positions: Tensor, spans: Sequence[tuple[slice, slice]]) -> int:
    height, width = _widths(spans)
    return len(spans) * len(positions) * height * width


class PackedAttention(torch.autograd.Function):
    """softmax(q k' + bias) v."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor | None, chunks: list[Chunk], dropout: float, *biases: Tensor
    ) -> Tensor:
        """Return the attention's output [tokens, inner], bf16.

        Args:
            ctx: Context of autograd.
            x: Queries, keys and values [tokens, 3 x inner], bf16; queries alone [tokens, inner] with `source`.
            source: Keys and values of other rows [source tokens, 2 x inner], bf16.
            chunks: All rows.
            dropout: Dropout rate of the probabilities.
            biases: Bias of each chunk.
        """
        output = _packed(x, len(x), x.shape[1] // (3 if source is None else 1), chunks[-1].queries)
        saved = []
        for chunk, bias in zip(chunks, biases, strict=True):
            heads = bias.shape[1]
            if source is None:
                q, k, v = _by_head(x, chunk.queries, (3, heads, chunk.widths[0]))
            else:
                (q,) = _by_head(x, chunk.queries, (1, heads, chunk.widths[0]))
                k, v = _by_head(source, chunk.keys, (2, heads, chunk.widths[1]))
            p = torch._softmax(torch.baddbmm(bias.flatten(0, 1), q, k.mT), -1, False)
            kept, mask = torch.native_dropout(p, dropout, True) if dropout else (p, None)
            _pack(torch.bmm(kept, v).unsqueeze(0), chunk.queries, output)
            saved += [q, k, v, p, kept, mask]
        ctx.save_for_backward(*saved)
        ctx.chunks, ctx.dropout = chunks, dropout
        ctx.source_tokens = None if source is None else len(source)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, source and, if they are trained, the biases."""
        outer = gradients[0]
        is_crossed, last = ctx.source_tokens is not None, ctx.chunks[-1]
        inner = outer.shape[1]
        x_gradient = _packed(outer, len(outer), inner * (1 if is_crossed else 3), last.queries)
        source_gradient = _packed(outer, ctx.source_tokens, 2 * inner, last.keys) if is_crossed else None
        bias_gradients: list[Tensor | None] = []
        saved = ctx.saved_tensors  # once, since gradient checkpointing computes them again
        for i, chunk in enumerate(ctx.chunks):
            q, k, v, p, kept, mask = saved[6 * i : 6 * i + 6]
            (gradient,) = _by_head(outer, chunk.queries, (1, chunk.bias.shape[1], chunk.widths[0]))
            scores = torch.bmm(gradient, v.mT)
            if mask is not None:
                scores.mul_(mask).div_(1 - ctx.dropout)
            scores = torch._softmax_backward_data(scores, p, -1, p.dtype)
            q_gradients = q.new_empty(1 if is_crossed else 3, *q.shape)
            kv_gradients = k.new_empty(2, *k.shape) if is_crossed else q_gradients[1:]
            torch.bmm(scores, k, out=q_gradients[0])
            torch.bmm(scores.mT, q, out=kv_gradients[0])
            torch.bmm(kept.mT, gradient, out=kv_gradients[1])
            _pack(q_gradients, chunk.queries, x_gradient)
            if source_gradient is not None:
                _pack(kv_gradients, chunk.keys, source_gradient)
            bias_gradients.append(scores.view(chunk.bias.shape) if ctx.needs_input_grad[4 + i] else None)
        return x_gradient, source_gradient, None, None, *bias_gradients


def _packed(like: Tensor, tokens: int, size: int, last: Sequence[slice]) -> Tensor:
    """Return an empty tensor [tokens, size] with zeros after the last row."""
    tensor = like.new_empty(tokens, size)
    tensor[last[-1].stop :] = 0
    return tensor


def _by_head(x: Tensor, rows: Sequence[slice], shape: tuple[int, int, int]) -> Tensor:
    """Return [parts, rows x heads, width, d] of [tokens, parts x heads x d], with zeros as padding.

    Args:
        x: Packed tensor.
        rows: Tokens of each row.
        shape: Numbers of parts and heads, and the width.
    """
    parts, heads, width = shape
    tokens = x.unflatten(1, (parts, heads, -1))
    padded = x.new_empty(parts, len(rows), heads, width, tokens.shape[3])
    for i, row in enumerate(rows):
        length = row.stop - row.start
        padded[:, i, :, :length] = tokens[row].permute(1, 2, 0, 3)
        padded[:, i, :, length:] = 0
    return padded.flatten(1, 2)


def _pack(padded: Tensor, rows: Sequence[slice], target: Tensor) -> None:
    """Copy [parts, rows x heads, width, d] into the rows of [tokens, parts x heads x d]."""
    by_row = padded.unflatten(1, (len(rows), -1))
    tokens = target.view(len(target), len(padded), by_row.shape[2], -1)
    for i, row in enumerate(rows):
        tokens[row] = by_row[:, i, :, : row.stop - row.start].permute(2, 0, 1, 3)
