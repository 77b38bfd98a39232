"""Adapters are folded like the base, padded to the bank's ranks, and rounded to bytes."""

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
    """Return the change of a layer's weight from exact arrays."""
    a, b = arrays[f"adapter.{group.name}.A"], arrays[f"adapter.{group.name}.B"][0, part]
    return (a[:, part * group.rank :][:, : group.rank] @ b).T


def test_exact_arrays_are_the_padded_adapter() -> None:
    adapter = {"x.q": draw(3, 1), "x.v": draw(4, 2)}
    room = plan(True)
    (group,) = room.groups.values()
    arrays = pack_adapter(room, adapter, {})
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == group.values
    for part, layer in enumerate(LAYERS):
        expected = adapter[layer].b @ adapter[layer].a if layer in adapter else np.zeros((5, 6))
        np.testing.assert_allclose(whole(arrays, part, group), expected, atol=1e-6)


def test_byte_arrays_approximate_the_adapter_in_seven_bits() -> None:
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
        product = inner[:, part * 4 : part * 4 + 4] @ b[0, part] * b_scale[:, part * 5 : part * 5 + 5]
        expected = x @ adapter[layer].a.T @ adapter[layer].b.T if layer in adapter else np.zeros((200, 5))
        assert np.abs(product - expected).max() <= 0.05 * max(1, np.abs(expected).max())


def test_slots_survive_serialization() -> None:
    room = plan(False, by_row=True)
    assert AdapterSlots.read(json.loads(json.dumps(room.as_dict()))) == room


def test_adapters_that_do_not_fit_are_refused() -> None:
    room = plan(True)
    room.check("new", {"x.q": draw(4)})
    with pytest.raises(
        UsageError, match=r"new at x.q is too high \(got 5, maximum of this bank: 4\); to get a wider bank"
    ):
        room.check("new", {"x.q": draw(5)})
    with pytest.raises(UsageError, match=r"new adapts y.q, which has no adapter slot"):
        room.check("new", {"y.q": draw(1)})


def test_ranks_are_the_maximum_over_adapters() -> None:
    assert ranks_of([{"a": draw(2), "b": draw(1)}, {"b": draw(3)}]) == {"a": 2, "b": 3}
    assert ranks_of([]) == {}


def test_folding_an_adapter_equals_folding_the_merged_weight(checkpoint: Path) -> None:
    architecture, weights = read_model(checkpoint)
    adapter = draw_adapter(checkpoint, 1)
    fold = Folded(
        architecture, weights, calibrate(architecture, weights, samples()), formats_of(NAMED["int8"], t5)
    ).fold
    base, both = (Folded.by(architecture, each, fold) for each in (weights, MergedWeights(weights, adapter)))
    folded_adapter = folded(adapter, fold)
    assert {name for layer in fold.rows for name in folded_adapter if name == layer}
    for layer, change in folded_adapter.items():
        expected = both[f"{layer}.weight"] - base[f"{layer}.weight"]
        np.testing.assert_allclose(change.b @ change.a, expected, atol=2e-5)


@pytest.mark.parametrize("by_row", [False, True])
def test_inner_peaks_are_the_largest_outputs_of_a(checkpoint: Path, by_row: bool) -> None:
    """Check the first layer, whose input does not depend on an adapter."""
    architecture, weights = read_model(checkpoint)
    layer, rows = "encoder.block.0.layer.0.SelfAttention.q", samples(rows=3)
    adapter = {layer: draw(2, inputs=architecture.d_model, outputs=architecture.width)}
    group = Group((layer,), architecture.d_model, architecture.width, 2, False, by_row)
    peaks = inner_peaks(architecture, weights, adapter, AdapterSlots({layer: 2}, {layer: group}), rows)
    expected = np.zeros(2)
    for sample in rows:
        x = weights["shared.weight"][sample.source]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + architecture.epsilon)
        x = x * weights["encoder.block.0.layer.0.layer_norm.weight"]
        inner = np.abs(x @ adapter[layer].a.T)
        if by_row:
            inner = inner / (np.abs(x).max(-1, keepdims=True) / 127)
        expected = np.maximum(expected, inner.max(axis=0))
    assert peaks.keys() == {layer}
    np.testing.assert_allclose(peaks[layer], expected, rtol=1e-4)
