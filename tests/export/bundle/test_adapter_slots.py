"""An adapter as bytes is nearly the adapter, folded as the base is, and padded to the bank's ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_ft.core.errors import UsageError
from lora_ft.export.bundle.adapter_slots import (
    AdapterSlots,
    LowRank,
    MergedWeights,
    folded,
    inner_peaks,
    pack_adapter,
    ranks_of,
)
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.families import t5
from lora_ft.export.onnx.lora import Group
from lora_ft.export.onnx.quantization import formats_of
from lora_ft.export.onnx.smoothquant import Folded, calibrate
from lora_ft.export.precision import NAMED
from tests.export.banks import draw_adapter, samples

LAYERS = ("x.q", "x.k", "x.v")


def draw(rank: int, seed: int = 0, inputs: int = 6, outputs: int = 5) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(rng.standard_normal((rank, inputs), np.float32), rng.standard_normal((outputs, rank), np.float32))


def plan(exact: bool, **changes: bool) -> AdapterSlots:
    group = Group(LAYERS, 6, 5, 4, exact, **changes)
    return AdapterSlots(dict.fromkeys(LAYERS, 4), {group.name: group})


def whole(arrays: dict[str, np.ndarray], part: int, group: Group) -> np.ndarray:
    """The change of one layer's weight that exact arrays make."""
    a, b = arrays[f"adapter.{group.name}.A"], arrays[f"adapter.{group.name}.B"][0, part]
    return (a[:, part * group.rank :][:, : group.rank] @ b).T


def test_exact_arrays_are_the_adapter_padded() -> None:
    adapter = {"x.q": draw(3, 1), "x.v": draw(4, 2)}
    room = plan(True)
    (group,) = room.groups.values()
    arrays = pack_adapter(room, adapter, {})
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == group.values
    for part, layer in enumerate(LAYERS):
        expected = adapter[layer].b @ adapter[layer].a if layer in adapter else np.zeros((5, 6))
        np.testing.assert_allclose(whole(arrays, part, group), expected, atol=1e-6)


def test_bytes_are_nearly_the_adapter_and_within_seven_bits() -> None:
    adapter = {"x.q": draw(3, 1), "x.v": draw(4, 2)}
    room = plan(False)
    (group,) = room.groups.values()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    peaks = {layer: np.abs(x @ change.a.T).max(axis=0) for layer, change in adapter.items()}
    arrays = pack_adapter(room, adapter, peaks)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == group.values
    a, b, a_scale, b_scale = (arrays[name].astype(np.float64) for name in group.values)
    assert max(np.abs(a).max(), np.abs(b).max()) == 63
    inner = np.rint((x @ a) * a_scale)
    assert 90 < np.abs(inner).max() <= 127
    for part, layer in enumerate(LAYERS):
        made = inner[:, part * 4 : part * 4 + 4] @ b[0, part] * b_scale[:, part * 5 : part * 5 + 5]
        expected = x @ adapter[layer].a.T @ adapter[layer].b.T if layer in adapter else np.zeros((200, 5))
        assert np.abs(made - expected).max() <= 0.05 * max(1, np.abs(expected).max())


def test_a_plan_survives_its_file() -> None:
    room = plan(False, by_row=True)
    assert AdapterSlots.read(json.loads(json.dumps(room.as_dict()))) == room


def test_what_does_not_fit_is_named() -> None:
    room = plan(True)
    room.check("new", {"x.q": draw(4)})
    with pytest.raises(UsageError, match=r"new has rank 5 at x.q, and this bank 4; to make a wider bank"):
        room.check("new", {"x.q": draw(5)})
    with pytest.raises(UsageError, match=r"new adapts y.q, which this bank has no room for"):
        room.check("new", {"y.q": draw(1)})


def test_a_bank_has_the_highest_ranks() -> None:
    assert ranks_of([{"a": draw(2), "b": draw(1)}, {"b": draw(3)}]) == {"a": 2, "b": 3}
    assert ranks_of([]) == {}


def test_folding_an_adapter_is_folding_the_changed_weight(checkpoint: Path) -> None:
    architecture, weights = read_model(checkpoint)
    adapter = draw_adapter(checkpoint, 1)
    fold = Folded(
        architecture, weights, calibrate(architecture, weights, samples()), formats_of(NAMED["int8"], t5)
    ).fold
    base, both = Folded.by(weights, fold), Folded.by(MergedWeights(weights, adapter), fold)
    own = folded(adapter, fold)
    assert {name for layer in fold.rows for name in own if name == layer}
    for layer, change in own.items():
        expected = both[f"{layer}.weight"] - base[f"{layer}.weight"]
        np.testing.assert_allclose(change.b @ change.a, expected, atol=2e-5)


@pytest.mark.parametrize("by_row", [False, True])
def test_inner_peaks_are_those_of_what_a_makes(checkpoint: Path, by_row: bool) -> None:
    """Of the first layer, whose input does not depend on any adapter."""
    architecture, weights = read_model(checkpoint)
    layer, seen = "encoder.block.0.layer.0.SelfAttention.q", samples(rows=3)
    adapter = {layer: draw(2, inputs=architecture.d_model, outputs=architecture.width)}
    group = Group((layer,), architecture.d_model, architecture.width, 2, False, by_row)
    found = inner_peaks(architecture, weights, adapter, AdapterSlots({layer: 2}, {layer: group}), seen)
    expected = np.zeros(2)
    for sample in seen:
        x = weights["shared.weight"][sample.source]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + architecture.epsilon)
        x = x * weights["encoder.block.0.layer.0.layer_norm.weight"]
        inner = np.abs(x @ adapter[layer].a.T)
        if by_row:
            inner = inner / (np.abs(x).max(-1, keepdims=True) / 127)
        expected = np.maximum(expected, inner.max(axis=0))
    assert found.keys() == {layer}
    np.testing.assert_allclose(found[layer], expected, rtol=1e-4)
