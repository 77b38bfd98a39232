"""The batched layer against peft's layers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from lora_ft.multi_lora.batched_linear import BatchRouting, MultiLoraLinear

IN, OUT = 6, 5


def adapted(base: nn.Linear, rank: int, seed: int) -> nn.Module:
    """Return peft's layer with weights that differ from their initial values."""
    torch.manual_seed(seed)
    model = get_peft_model(nn.Sequential(copy.deepcopy(base)), LoraConfig(r=rank, lora_alpha=7, target_modules=["0"]))
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def stacked_layer(base: nn.Linear, layers: list[nn.Module], ranks: list[int]) -> MultiLoraLinear:
    """Return the batched layer with the weights of peft's layers."""
    a, b = torch.zeros(len(layers), IN, max(ranks)), torch.zeros(len(layers), max(ranks), OUT)
    for i, (layer, rank) in enumerate(zip(layers, ranks, strict=True)):
        a[i, :, :rank] = layer.lora_A["default"].weight.detach().T  # type: ignore[index, union-attr]
        b[i, :rank] = layer.lora_B["default"].weight.detach().T  # type: ignore[index, union-attr]
    return MultiLoraLinear(base, BatchRouting(), a, b, torch.tensor([7 / rank for rank in ranks]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4, unique_by=lambda x: x[0]),
    st.integers(1, 4),
)
def test_each_row_uses_its_own_adapter(rows: list[tuple[int, int]], length: int) -> None:
    """Outputs and gradients equal peft's for any adapters in a batch, order and numbers of rows."""
    torch.manual_seed(0)
    base, ranks = nn.Linear(IN, OUT, bias=False), [1, 2, 4, 3]
    layers = [adapted(base, rank, seed) for seed, rank in enumerate(ranks)]
    ours = stacked_layer(base, layers, ranks)
    ours.route.send(rows, len(ranks), torch.device("cpu"))
    x = torch.randn(sum(count for _, count in rows), length, IN)
    output = ours(x)
    parts = x.split([count for _, count in rows])
    expected = torch.cat([layers[number](part) for (number, _), part in zip(rows, parts, strict=True)])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn_like(output)
    (output * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.a.grad is not None and ours.b.grad is not None
    present = {number for number, _ in rows}
    for number, (layer, rank) in enumerate(zip(layers, ranks, strict=True)):
        if number in present:
            theirs = layer.lora_A["default"].weight.grad.T, layer.lora_B["default"].weight.grad.T  # type: ignore[index, union-attr]
            torch.testing.assert_close(ours.a.grad[number, :, :rank], theirs[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.b.grad[number, :rank], theirs[1], rtol=1e-4, atol=1e-4)
        assert not ours.a.grad[number, :, rank:].any() and not ours.b.grad[number, rank:].any()
        assert number in present or not ours.a.grad[number].any()


def test_send_all_routes_all_rows_to_one_adapter() -> None:
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias=False)
    layers = [adapted(base, 2, seed) for seed in range(3)]
    ours = stacked_layer(base, layers, [2, 2, 2])
    x = torch.randn(3, 2, IN)
    ours.route.send_all(1)
    torch.testing.assert_close(ours(x), layers[1](x))


def test_scale_is_not_rounded_to_bf16() -> None:
    """peft multiplies a bf16 product by 7 / 3 in float32."""
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias=False)
    layers = [adapted(base, 3, seed) for seed in range(2)]
    ours = stacked_layer(base, layers, [3, 3])
    ours.route.send([(0, 1), (1, 1)], 2, torch.device("cpu"))
    x = torch.randn(2, 4, IN)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(x), torch.cat([layers[0](x[:1]), layers[1](x[1:])])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.01, atol=0.02)


def test_layer_exposes_the_base_weight() -> None:
    base = nn.Linear(IN, OUT, bias=False)
    assert stacked_layer(base, [adapted(base, 2, 0)], [2]).weight is base.weight


@pytest.mark.parametrize("blocks", [[(0, 2), (1, 2)], [(1, 2), (0, 2)], [(0, 1), (1, 2)]])
def test_equal_blocks_share_one_product(blocks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    base = nn.Linear(IN, OUT, bias=False)
    ours = stacked_layer(base, [adapted(base, 2, seed) for seed in range(2)], [2, 2])
    calls: list[int] = []
    original = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: calls.append(len(a)) or original(a, b))
    ours.route.send(blocks, 2, torch.device("cpu"))
    ours(torch.randn(sum(rows for _, rows in blocks), 3, IN))
    assert calls == ([2, 2] if blocks[0][1] == blocks[1][1] else [1, 1, 1, 1])
