"""Fold outliers of activations into weights, so that 8-bit activations lose little accuracy.

SmoothQuant (arXiv 2211.10438): input channel j of a linear layer is divided by s_j = max|x_j|^a / max|w_j|^(1-a), and
the weight's column j is multiplied by it, so the function does not change. A few channels of FLAN-T5 are up to 1,000
times the median, which costs 8-bit activations six ROUGE points. In T5 every division can be folded into an existing
weight, so the graph has no additional nodes:

    norm -> q, k, v; cross q; wi        v -> o        wi_1 (or wi before a relu) -> wo
    encoder.final_layer_norm -> the cross k and v of every layer        decoder.final_layer_norm -> lm_head
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from lora_ft.core.errors import LoraFtError
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.onnx.graph import FLOAT, INT64, Graph, WeightFile
from lora_ft.export.onnx.model_parts import KeyValue, ModelParts, Weights
from lora_ft.export.onnx.quantization import Float32, Weight, WeightFormat
from lora_ft.export.runtime.session import open_session

_SMALLEST, _QUIET = 1e-5, 0.1
PEAK, _MOMENTS = "peak ", "moments "  # prefixes of the outputs of observed layers


@dataclass(frozen=True)
class Sample:
    """A calibration row: source tokens [s] and decoder input tokens [t], int64, unpadded."""

    source: np.ndarray
    decoder: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Statistics of the inputs of linear layers over the calibration rows, by layer.

    Attributes:
        peaks: Largest magnitude of each channel [in].
        moments: Sums of products of the channels [in, in], for the layers that need them.
    """

    peaks: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


def calibrate(
    architecture: Architecture,
    weights: Weights,
    samples: Iterable[Sample],
    moments: Callable[[str], bool] = lambda layer: False,
) -> Calibration:
    """Collect statistics of the inputs of every linear layer.

    Args:
        architecture, weights: The model.
        samples: Calibration rows.
        moments: Returns whether to collect the moments of a layer.

    Raises:
        LoraFtError: There are no rows.
    """
    outputs = observe(architecture, weights, _Watched(moments), samples)
    kinds = (
        {
            layer: value
            for name, value in outputs.items()
            if name.startswith(kind)
            for layer in name.removeprefix(kind).split("+")
        }
        for kind in (PEAK, _MOMENTS)
    )
    return Calibration(*kinds)


def observe(
    architecture: Architecture, weights: Weights, watcher: WeightFormat, samples: Iterable[Sample]
) -> dict[str, np.ndarray]:
    """Return the outputs that a format adds to the graph, merged over rows: maxima if named `PEAK`, else sums.

    Raises:
        LoraFtError: There are no rows.
    """
    with tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        session = open_session(_watched_model(architecture, weights, watcher, Path(scratch)))
    names = [output.name for output in session.get_outputs()]
    outputs: dict[str, np.ndarray] = {}
    for sample in samples:
        feed = {
            "input_ids": sample.source[None],
            "attention_mask": np.ones_like(sample.source[None]),
            "decoder_input_ids": sample.decoder[None],
        }
        for name, value in zip(names, session.run(names, feed), strict=True):
            if name not in outputs:
                outputs[name] = np.array(value)
            else:
                merge = np.maximum if name.startswith(PEAK) else np.add
                merge(outputs[name], value, out=outputs[name])
    if not outputs:
        raise LoraFtError("there are no calibration rows", "provide rows, or export fp32")
    return outputs


def joined(calibrations: Sequence[Calibration]) -> Calibration:
    """Return one calibration over the rows of all calibrations."""
    if len(calibrations) == 1:
        return calibrations[0]
    peaks = {layer: np.max([each.peaks[layer] for each in calibrations], axis=0) for layer in calibrations[0].peaks}
    moments = {
        layer: np.sum([each.moments[layer] for each in calibrations], axis=0) for layer in calibrations[0].moments
    }
    return Calibration(peaks, moments)


@dataclass(frozen=True)
class Fold:
    """Factors that fold outliers into weights. Layers without an entry do not change.

    Attributes:
        columns: Factors of the input channels, by layer.
        rows: Divisors of the output channels, by layer or norm.
        peaks: Largest magnitude of the folded input, for layers with a fixed input scale.
    """

    columns: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray]
    peaks: Mapping[str, float]


class Folded:
    """Weights with outliers of the activations folded in: the same function, but easier to round.

    Args:
        architecture, weights: The model.
        calibration: Statistics of the model's activations.
        storage: Returns the weight format of a layer, which determines the folded share.

    Attributes:
        fold: The folded factors.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        calibration: Calibration,
        storage: Callable[[str], WeightFormat],
    ) -> None:
        self._family, self._weights = architecture.family, weights
        self._moments, peaks = calibration.moments, calibration.peaks
        self._columns: dict[str, np.ndarray] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._peaks: dict[str, float] = {}
        self.fold = Fold(self._columns, self._rows, self._peaks)
        for producer, layers in architecture.family.shared_inputs(architecture):
            weight = np.max([np.abs(self._original(layer)).max(0) for layer in layers], axis=0)
            alpha = storage(layers[0]).alpha
            # a channel without values in calibration may have some later, so it counts as quiet, not as zero
            peak = np.maximum(peaks[layers[0]], max(_QUIET * np.median(peaks[layers[0]]), _SMALLEST))
            scale = peak**alpha / np.maximum(weight, _SMALLEST) ** (1 - alpha)
            self._rows[producer] = scale
            for layer in layers:
                self._columns[layer] = scale
                if not layer.endswith(architecture.family.SCALED_BY_ROW):
                    self._peaks[layer] = float((peaks[layer] / scale).max())

    @classmethod
    def by(cls, architecture: Architecture, weights: Weights, fold: Fold) -> Folded:
        """Return other weights with the factors of an earlier fold. Their moments are unknown."""
        folded = cls.__new__(cls)
        folded._family, folded._weights, folded._moments, folded.fold = architecture.family, weights, {}, fold
        folded._columns, folded._rows, folded._peaks = dict(fold.columns), dict(fold.rows), dict(fold.peaks)
        return folded

    def __contains__(self, name: str) -> bool:
        return name == f"{self._family.HEAD}.weight" or name in self._weights

    def __getitem__(self, name: str) -> np.ndarray:
        layer = name.removesuffix(".weight")
        weight = self._original(layer)
        if layer in self._columns:
            weight = weight * self._columns[layer]
        if layer in self._rows:
            scale = self._rows[layer]
            weight = weight / (scale if weight.ndim == 1 else scale[:, None])
        return weight.astype(np.float32, copy=False)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(f"{self._stored(name.removesuffix('.weight'))}.weight")

    def peak(self, layer: str) -> float:
        return self._peaks.get(layer, 0.0)

    def moments(self, layer: str) -> np.ndarray | None:
        products = self._moments.get(layer)
        return None if products is None else products / np.outer(self._columns[layer], self._columns[layer])

    def _original(self, layer: str) -> np.ndarray:
        return self._weights[f"{self._stored(layer)}.weight"]

    def _stored(self, layer: str) -> str:
        """Return the layer whose weight is stored: a tied head is the embedding, of which only this copy is folded."""
        tied = layer == self._family.HEAD and f"{layer}.weight" not in self._weights
        return self._family.EMBEDDING if tied else layer


class _Watched(Float32):
    """Linear layers that also output statistics of their input, for `calibrate`."""

    def __init__(self, moments: Callable[[str], bool]) -> None:
        self._moments = moments

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        name = "+".join(weight.layers)
        peak = g.output(PEAK + name, FLOAT, weight.inputs)
        g.op("ReduceMax", g.op("Abs", x), g.ints(0, 1), output=peak, keepdims=0)
        if any(map(self._moments, weight.layers)):
            rows = g.op("Reshape", x, g.ints(-1, weight.inputs))
            products = g.output(_MOMENTS + name, FLOAT, weight.inputs, weight.inputs)
            g.op("MatMul", g.op("Transpose", rows, perm=[1, 0]), rows, output=products)
        return super().linear(g, x, weight, output)


def _watched_model(architecture: Architecture, weights: Weights, watcher: WeightFormat, folder: Path) -> Path:
    """Write the graph input_ids[1,s], attention_mask[1,s], decoder_input_ids[1,t] -> input statistics."""
    with WeightFile(folder / "weights.bin") as file:
        model = _watched_graph(
            architecture.family.graph_parts(architecture, weights, lambda layer: watcher), Graph("watched", file)
        )
    onnx.save(model, folder / "watched.onnx")
    return folder / "watched.onnx"


def _watched_graph(parts: ModelParts, g: Graph) -> onnx.ModelProto:
    a = parts.architecture
    ids, mask = g.input("input_ids", INT64, 1, "s"), g.input("attention_mask", INT64, 1, "s")
    decoder_ids = g.input("decoder_input_ids", INT64, 1, "t")
    cross = [KeyValue(f"cross.{i}.key", f"cross.{i}.value") for i in range(a.decoder_layers)]
    parts.cross(g, parts.encode(g, ids, mask), cross)
    empty = g.constant(np.zeros((1, a.heads, 0, a.d_kv), np.float32))
    presents = [KeyValue(f"present.{i}.key", f"present.{i}.value") for i in range(a.decoder_layers)]
    hidden = parts.decode(g, decoder_ids, mask, [KeyValue(empty, empty)] * a.decoder_layers, cross, presents)
    parts.head(g, hidden)
    return g.model()
