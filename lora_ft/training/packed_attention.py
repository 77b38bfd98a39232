"""Attention of T5 over packed rows, a few rows at a time.

transformers adds the position bias and the mask to all scores in float32, in passes over memory: 31 MB each for 8 rows
of 400 tokens. Here the bias is added inside the matrix product, and the scores of a few rows stay in the cache until
they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_ft.training.packed_rows import PackedRows

_SCORES = 1_000_000  # computed at a time: 2 MB
_HIDDEN = -1e30  # score of a hidden position, whose probability is then 0


def score_bias(queries: PackedRows, keys: PackedRows, positions: Tensor, *, is_causal: bool) -> Tensor:
    """Return what is added to the scores of each row, bf16 [rows, heads, queries, keys].

    Args:
        queries, keys: Rows that attend, and rows that they attend to.
        positions: Position bias [heads, queries, keys].
        is_causal: True if a query sees no later key.
    """
    hidden = keys.is_padding()[:, None, None, :]
    if is_causal:
        hidden = hidden | torch.ones(positions.shape[1:], dtype=torch.bool).triu(1)
    return positions.bfloat16().masked_fill(hidden, _HIDDEN)


class PackedAttention(torch.autograd.Function):
    """softmax(q k' + bias) v."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor | None, bias: Tensor, queries: PackedRows, keys: PackedRows, dropout: float
    ) -> Tensor:
        """Return the attention's output [tokens, inner], bf16.

        Args:
            ctx: Context of autograd.
            x: Queries, keys and values [tokens, 3 x inner], bf16; queries alone [tokens, inner] with `source`.
            source: Keys and values of other rows [source tokens, 2 x inner], bf16.
            bias: Added to the scores, see `score_bias`.
            queries, keys: Rows of x, and of what they attend to.
            dropout: Dropout rate of the probabilities.
        """
        padded = [queries.pad(x)] if source is None else [queries.pad(x), keys.pad(source)]
        q, k, v = _by_head(padded, bias.shape[1])
        output = torch.empty_like(q)
        saved = []
        for rows in _chunks(bias):
            scores = torch.baddbmm(_flat(bias, rows), _flat(q, rows), _flat(k, rows).mT)
            p = torch._softmax(scores, -1, False)
            kept, mask = torch.native_dropout(p, dropout, True) if dropout else (p, None)
            output[rows] = torch.bmm(kept, _flat(v, rows)).view(-1, *q.shape[1:])
            saved += [p, kept, mask]
        ctx.save_for_backward(*padded, bias, *saved)
        ctx.rows, ctx.dropout = (queries, keys), dropout
        return queries.pack(output.transpose(1, 2)).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, source and, if it is trained, bias."""
        queries, keys = ctx.rows
        count = 1 if queries is keys else 2
        tensors = ctx.saved_tensors  # once, since gradient checkpointing computes them again
        padded, (bias, *saved) = tensors[:count], tensors[count:]
        results = [torch.empty_like(tensor) for tensor in padded]
        q, k, v = _by_head(padded, bias.shape[1])
        q_gradient, k_gradient, v_gradient = _by_head(results, bias.shape[1])
        outer = queries.pad(gradients[0].unflatten(1, (bias.shape[1], -1))).transpose(1, 2)
        scores_gradients = []
        for i, rows in enumerate(_chunks(bias)):
            p, kept, mask = saved[3 * i : 3 * i + 3]
            gradient = _flat(outer, rows)
            v_gradient[rows] = torch.bmm(kept.mT, gradient).view(-1, *v.shape[1:])
            inner = torch.bmm(gradient, _flat(v, rows).mT)
            if mask is not None:
                inner.mul_(mask).div_(1 - ctx.dropout)
            inner = torch._softmax_backward_data(inner, p, -1, p.dtype)
            q_gradient[rows] = torch.bmm(inner, _flat(k, rows)).view(-1, *q.shape[1:])
            k_gradient[rows] = torch.bmm(inner.mT, _flat(q, rows)).view(-1, *k.shape[1:])
            if ctx.needs_input_grad[2]:
                scores_gradients.append(inner.view(-1, *bias.shape[1:]))
        source_gradient = keys.pack(results[1]) if count == 2 else None
        bias_gradient = torch.cat(scores_gradients) if scores_gradients else None
        return queries.pack(results[0]), source_gradient, bias_gradient, None, None, None


def _by_head(padded: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Return queries, keys and values as views [rows, heads, width, d] of one tensor, or of two."""
    parts = (3,) if len(padded) == 1 else (1, 2)
    return [
        view.transpose(1, 2)
        for tensor, count in zip(padded, parts, strict=True)
        for view in tensor.unflatten(2, (count, heads, -1)).unbind(2)
    ]


def _flat(tensor: Tensor, rows: slice) -> Tensor:
    """Return [rows x heads, ...] of some rows of [rows, heads, ...]."""
    return tensor[rows].flatten(0, 1)


def _chunks(bias: Tensor) -> Iterator[slice]:
    """Yield slices of rows whose scores fit into the cache together."""
    count = max(1, _SCORES // bias[0].numel())
    return (slice(start, start + count) for start in range(0, len(bias), count))
