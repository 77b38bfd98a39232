"""Adapter slots of a bank: which layers have one, its maximum rank, and how an adapter is packed into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_ft.core.errors import UsageError
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.gptq import TINY
from lora_ft.export.onnx.graph import FLOAT, Graph
from lora_ft.export.onnx.lora import PREFIX, Adapted, Group
from lora_ft.export.onnx.model_parts import Weights
from lora_ft.export.onnx.quantization import Float32, Weight, WeightFormat
from lora_ft.export.onnx.smoothquant import PEAK, Fold, Sample, observe

# Largest magnitude of an adapter's bytes. Sums of two products with unsigned bytes then fit in 16 bits, the width of
# additions on x86 without VNNI. For weights that are graph inputs, ONNX Runtime has no other kernel there.
_MOST = 63
_MARGIN = 1.25  # factor on calibrated magnitudes inside an adapter, since calibration sees few rows


@dataclass(frozen=True)
class LowRank:
    """An adapter's change of one layer's weight, b @ a.

    Attributes:
        a: float32 [rank, inputs].
        b: float32 [outputs, rank], multiplied by the adapter's scale.
    """

    a: np.ndarray
    b: np.ndarray


Adapter = Mapping[str, LowRank]  # by layer


@dataclass(frozen=True)
class AdapterSlots:
    """The adapter slots of a bank.

    Attributes:
        ranks: Maximum rank of an adapter, by layer.
        groups: Groups of layers in the bank's graphs, by name.
    """

    ranks: Mapping[str, int]
    groups: Mapping[str, Group]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> AdapterSlots:
        """Return slots from the result of `as_dict`."""
        groups = {
            name: Group(**{**group, "layers": tuple(group["layers"])}) for name, group in content["groups"].items()
        }
        return cls(content["ranks"], groups)

    def as_dict(self) -> dict[str, Any]:
        """Return the slots as JSON-compatible values."""
        return {"ranks": dict(self.ranks), "groups": {name: asdict(group) for name, group in self.groups.items()}}

    def check(self, name: str, adapter: Adapter) -> None:
        """Raise UsageError if an adapter does not fit the slots."""
        wider = "to get a wider bank, export it again with this adapter among --adapters"
        beyond = sorted(adapter.keys() - self.ranks.keys())
        if beyond:
            raise UsageError(f"{name} adapts {beyond[0]}, which has no adapter slot in this bank", wider)
        for layer, change in adapter.items():
            if len(change.a) > self.ranks[layer]:
                rank, most = len(change.a), self.ranks[layer]
                raise UsageError(
                    f"the rank of {name} at {layer} is too high (got {rank}, maximum of this bank: {most})", wider
                )


def ranks_of(adapters: Iterable[Adapter]) -> dict[str, int]:
    """Return the highest rank of the adapters, by layer."""
    ranks: dict[str, int] = {}
    for adapter in adapters:
        for layer, change in adapter.items():
            ranks[layer] = max(ranks.get(layer, 0), len(change.a))
    return dict(sorted(ranks.items()))


def adapted(
    storage: Callable[[str], WeightFormat], ranks: Mapping[str, int], groups: dict[str, Group]
) -> Callable[[str], WeightFormat]:
    """Return a choice of formats that adds adapters to all layers in `ranks`. Building the graphs fills `groups`."""
    return lambda layer: Adapted(storage(layer), ranks, groups)


class MergedWeights:
    """Weights with an adapter merged in."""

    def __init__(self, weights: Weights, adapter: Adapter) -> None:
        self._weights, self._adapter = weights, adapter

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> np.ndarray:
        change = self._adapter.get(name.removesuffix(".weight"))
        return self._weights[name] if change is None else self._weights[name] + change.b @ change.a

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def peak(self, name: str) -> float:
        return self._weights.peak(name)

    def moments(self, layer: str) -> np.ndarray | None:
        return self._weights.moments(layer)


def folded(adapter: Adapter, fold: Fold) -> dict[str, LowRank]:
    """Return an adapter that fits weights with folded outliers."""
    layers = {}
    for layer, change in adapter.items():
        a, b = change.a, change.b
        if layer in fold.columns:
            a = a * fold.columns[layer]
        if layer in fold.rows:
            b = b / fold.rows[layer][:, None]
        layers[layer] = LowRank(a.astype(np.float32), b.astype(np.float32))
    return layers


def inner_peaks(
    architecture: Architecture, weights: Weights, adapter: Adapter, slots: AdapterSlots, samples: Iterable[Sample]
) -> dict[str, np.ndarray]:
    """Return the largest magnitudes [rank] of A's outputs over the samples, by layer.

    Args:
        architecture: Architecture of the base.
        weights: Weights of the base with folded outliers, as the bank stores them.
        adapter: Adapter with folded outliers.
        slots: Slots of the bank. If a group's input has a scale per row, magnitudes are in units of that scale.
        samples: Calibration rows.
    """
    by_row = {layer for group in slots.groups.values() if group.by_row for layer in group.layers}
    outputs = observe(architecture, MergedWeights(weights, adapter), _Inner(adapter, by_row), samples)
    return {name.removeprefix(PEAK): peaks for name, peaks in outputs.items()}


def pack_adapter(slots: AdapterSlots, adapter: Adapter, peaks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of an adapter for all adapter inputs of a bank's graphs.

    Args:
        slots: Slots of the bank.
        adapter: Adapter with folded outliers.
        peaks: Result of `inner_peaks`, for groups that are not exact.
    """
    arrays: dict[str, np.ndarray] = {}
    for group in slots.groups.values():
        a = np.zeros((len(group.layers), group.inputs, group.rank), np.float32)
        b = np.zeros((len(group.layers), group.rank, group.width), np.float32)
        peak = np.zeros((len(group.layers), group.rank), np.float32)
        for part, layer in enumerate(group.layers):
            if layer in adapter:
                rank = len(adapter[layer].a)
                a[part, :, :rank], b[part, :rank] = adapter[layer].a.T, adapter[layer].b.T
                peak[part, :rank] = 1 if group.exact else peaks[layer]
        joined = a.transpose(1, 0, 2).reshape(group.inputs, -1)
        values = [joined, b] if group.exact else _rounded(joined, b, peak)
        arrays |= {
            name: value.reshape(shape).astype(dtype, copy=False)
            for (name, (dtype, shape)), value in zip(group.values.items(), values, strict=True)
        }
    return arrays


def _rounded(a: np.ndarray, b: np.ndarray, peak: np.ndarray) -> list[np.ndarray]:
    """Return A as bytes [inputs, parts*rank], B as bytes [parts, rank, width], and their scales.

    A's output is in units of 1/127 of its peak. B includes that factor.
    """
    peak = np.maximum(_MARGIN * peak, TINY)
    b = b * (peak / 127)[..., None]
    a_step = np.maximum(np.abs(a).max(axis=0) / _MOST, TINY)
    b_step = np.maximum(np.abs(b).max(axis=1) / _MOST, TINY)
    return [np.rint(a / a_step), np.rint(b / b_step[:, None]), a_step * (127 / peak.reshape(-1)), b_step]


class _Inner(Float32):
    """Linear layers that also output the largest magnitudes of A's outputs."""

    def __init__(self, adapter: Adapter, by_row: set[str]) -> None:
        self._adapter, self._by_row = adapter, by_row

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        for layer in weight.layers:
            if layer not in self._adapter:
                continue
            a = self._adapter[layer].a.T
            inner = g.op("Abs", g.op("MatMul", x, g.constant(a, f"{PREFIX}{layer}")))
            if layer in self._by_row:
                top = g.op("ReduceMax", g.op("Abs", x), g.ints(-1), keepdims=1)
                tiny = g.constant(np.float32(TINY), "float.tiny")
                inner = g.op("Div", inner, g.op("Max", g.op("Div", top, g.constant(np.float32(127))), tiny))
            peak = g.output(PEAK + layer, FLOAT, a.shape[1])
            g.op("ReduceMax", inner, g.ints(0, 1), output=peak, keepdims=0)
        return super().linear(g, x, weight, output)
