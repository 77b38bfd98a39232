"""Attention over packed rows equals attention over each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ft.training import packed_attention
from lora_ft.training.packed_attention import PackedAttention, attention_chunks, padded_width
from lora_ft.training.packed_rows import PackedRows

HEADS, D = 3, 8


def rows_of(lengths: list[int]) -> PackedRows:
    return PackedRows(lengths)


def tokens(rows: PackedRows, parts: int) -> Tensor:
    x = torch.randn(sum(rows.lengths) + rows.filler, parts * HEADS * D).bfloat16()
    return x.requires_grad_()


def attend(x: Tensor, source: Tensor | None, rows: list[PackedRows], positions: Tensor, **options: Any) -> Tensor:
    chunks = attention_chunks(rows[0], rows[-1], positions, is_causal=options.get("is_causal", False))
    output: Tensor = PackedAttention.apply(x, source, chunks, options.get("dropout", 0.0), *(c.bias for c in chunks))
    return output


def alone(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return the attention of one row in float32, for [tokens, inner]."""
    q, k, v = (x.float().unflatten(1, (HEADS, D)).transpose(0, 1) for x in (q, k, v))
    return ((q @ k.mT + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)


@pytest.fixture(params=[1, 10**6], ids=["row by row", "at once"])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "_SCORES", request.param)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("is_causal", [False, True])
def test_self_attention_equals_that_of_each_row(is_causal: bool) -> None:
    torch.manual_seed(0)
    rows = rows_of([5, 1, 9, 40, 33])
    x, positions = tokens(rows, 3), torch.randn(HEADS, padded_width(rows), padded_width(rows)).requires_grad_()
    output = attend(x, None, [rows], positions, is_causal=is_causal)
    used = sum(rows.lengths)
    output[:used].float().square().sum().backward()
    measured, measured_bias = x.grad, positions.grad

    x.grad = positions.grad = None
    expected = []
    for part in x[:used].split(rows.lengths):
        later = torch.ones(len(part), len(part), dtype=torch.bool).triu(1) if is_causal else False
        bias = positions[:, : len(part), : len(part)].masked_fill(torch.as_tensor(later), -1e30)
        expected.append(alone(*part.chunk(3, 1), bias))
    torch.cat(expected).square().sum().backward()
    torch.testing.assert_close(output[:used].float(), torch.cat(expected), atol=0.05, rtol=0.05)
    torch.testing.assert_close(measured, x.grad, atol=0.2, rtol=0.1)
    torch.testing.assert_close(measured_bias, positions.grad, atol=0.2, rtol=0.1)


@pytest.mark.usefixtures("_chunk")
def test_attention_to_other_rows_equals_that_of_each_row() -> None:
    torch.manual_seed(0)
    rows, source = rows_of([2, 7, 4]), rows_of([11, 3, 6])
    q, kv = tokens(rows, 1), tokens(source, 2)
    positions = torch.zeros(HEADS, padded_width(rows), padded_width(source))
    used, used_source = sum(rows.lengths), sum(source.lengths)
    output = attend(q, kv, [rows, source], positions)
    output[:used].float().square().sum().backward()
    measured = q.grad, kv.grad
    q.grad = kv.grad = None
    pairs = zip(q[:used].split(rows.lengths), kv[:used_source].split(source.lengths), strict=True)
    expected = torch.cat([alone(part, *other.chunk(2, 1), torch.zeros(())) for part, other in pairs])
    expected.square().sum().backward()
    torch.testing.assert_close(output[:used].float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(measured[0], q.grad, atol=0.2, rtol=0.1)
    torch.testing.assert_close(measured[1], kv.grad, atol=0.2, rtol=0.1)


def test_dropout_keeps_the_mean_and_its_gradient_matches() -> None:
    torch.manual_seed(0)
    rows = rows_of([40])
    positions = torch.zeros(HEADS, padded_width(rows), padded_width(rows))
    x = tokens(rows, 3)
    values = (
        torch.cat([torch.zeros(len(x), 2 * HEADS * D), torch.ones(len(x), HEADS * D)], 1).bfloat16().requires_grad_()
    )
    output = attend(values, None, [rows], positions, dropout=0.5)[:40]
    assert output.float().mean().item() == pytest.approx(1.0, abs=0.05)
    assert output.float().std() > 0.05
    output.sum().backward()
    v_gradient = values.grad[:40, 2 * HEADS * D :].float()
    assert v_gradient.sum().item() == pytest.approx(output.float().sum().item(), rel=0.02)  # linear in v, which is 1
