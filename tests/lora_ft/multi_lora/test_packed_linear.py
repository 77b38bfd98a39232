"""Packed linear layers of a group against the batched layers on padded rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lora_ft.multi_lora.batched_linear import SOURCE, TARGET, BatchRouting, MultiLoraLinear
from lora_ft.multi_lora.packed_linear import GroupProjection

IN, OUTS, ADAPTERS, RANK = 6, (5, 4, 3), 4, 3


def make_layers(side: int) -> tuple[list[nn.Module], BatchRouting]:
    """Return three layers with one input. The second has no adapters, and adapter 2 does not adapt the third."""
    torch.manual_seed(0)
    route, layers = BatchRouting(), []
    for number, width in enumerate(OUTS):
        base = nn.Linear(IN, width, bias=False).requires_grad_(False)
        a, b = torch.randn(ADAPTERS, IN, RANK), torch.randn(ADAPTERS, RANK, width)
        layer = MultiLoraLinear(base, route, a, b, torch.tensor([0.5, 1.0, 2.0, 3.0]), side)
        if number == 2:
            layer.adapted[2], layer.scale[2] = False, 0.0
        layers.append(base if number == 1 else layer)
    return layers, route


def similar(ours: Tensor, theirs: Tensor) -> bool:
    """Return True if two tensors are equal up to bf16's rounding."""
    return bool((ours.float() - theirs.float()).norm() <= 0.03 * theirs.float().norm())


@given(
    st.lists(st.tuples(st.integers(0, ADAPTERS - 1), st.integers(1, 5)), min_size=1, unique_by=lambda x: x[0]),
    st.sampled_from([SOURCE, TARGET]),
)
def test_outputs_and_gradients_equal_those_of_padded_rows(parts: list[tuple[int, int]], side: int) -> None:
    layers, route = make_layers(side)
    numbers, counts = [number for number, _ in parts], [count for _, count in parts]
    x = torch.randn(sum(counts), IN).bfloat16()
    ends = torch.tensor(counts).cumsum(0).tolist()
    spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    route.send_packed(numbers, (spans, []) if side == SOURCE else ([], spans))
    packed_x, padded_x = x.clone().requires_grad_(), x.float().unsqueeze(1).requires_grad_()
    output = GroupProjection(layers)(packed_x)
    assert output.dtype == torch.bfloat16
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    stacked = [layer for layer in layers if isinstance(layer, MultiLoraLinear)]
    ours = [matrix.grad for layer in stacked for matrix in (layer.a, layer.b)]
    for layer in stacked:
        layer.a.grad = layer.b.grad = None
    route.send(parts, ADAPTERS, torch.device("cpu"))
    expected = torch.cat([layer(padded_x) for layer in layers], dim=-1).squeeze(1)
    (expected * weight.float()).sum().backward()
    assert similar(output, expected)
    assert packed_x.grad is not None and padded_x.grad is not None and similar(packed_x.grad, padded_x.grad.squeeze(1))
    theirs = [matrix.grad for layer in stacked for matrix in (layer.a, layer.b)]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is not None and other is not None and mine.dtype == torch.float32
        for number in range(ADAPTERS):
            assert similar(mine[number], other[number])
            assert number in numbers or not mine[number].any()


def test_frozen_layers_are_one_product() -> None:
    layers = [nn.Linear(IN, width, bias=False).requires_grad_(False) for width in OUTS]
    x = torch.randn(7, IN).bfloat16()
    expected = torch.cat([x @ layer.weight.bfloat16().T for layer in layers], dim=1)
    assert GroupProjection(layers)(x).float() == pytest.approx(expected.float(), abs=1e-2)
