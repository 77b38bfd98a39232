"""The weight formats of `lora_ft.export.precision` as ONNX nodes: one small class for each way to store and multiply.

    Float32  plain MatMul
    Half     16-bit floats; the feed-forward's last product, and all that is not a product, stay fp32
    Int8     8-bit weights with a scale for each output channel; 8-bit activations with a calibrated scale, or one a row
    Blocks   8-bit or 4-bit weights in groups of inputs; activations are quantized at run time, by row and group

Of the 4-bit formats, w4g128 takes a fifth less time a step than w4, and its rounding costs half as much again.

Scales of activations are constants or belong to a row. Other runtimes take the range over the whole batch, so that a
row's answer depends on its neighbors. Sums are still added in an order that depends on the number of rows, so a rounded
model may answer a row differently in another batch: with int8-w4, 52 of 60 answers were equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from onnx import TensorProto, helper

from lora_ft.export.families import Family
from lora_ft.export.onnx.gptq import TINY, round_to_nearest, round_with_compensation
from lora_ft.export.onnx.graph import FLOAT, MS, Graph
from lora_ft.export.precision import FORMATS, Format, Precision

_INT8_ARITHMETIC = 4  # accuracy_level: activations are quantised to int8 by blocks


@dataclass(frozen=True)
class Weight:
    """A matrix that is read only when it is stored.

    Attributes:
        layers: Names of the layers, several if they share their input and lie side by side.
        outputs, inputs: Shape of the matrix.
        read: Returns the float32 array [outputs, inputs].
        peak: Largest magnitude of the layer's input in calibration; 0 if no single scale serves it.
        moments: Returns sums of products of the layer's inputs in calibration [inputs, inputs], or None.
    """

    layers: tuple[str, ...]
    outputs: int
    inputs: int
    read: Callable[[], np.ndarray]
    peak: float = 0.0
    moments: Callable[[], np.ndarray | None] = lambda: None

    @property
    def name(self) -> str:
        """Name that the matrix is stored under."""
        return "+".join(self.layers) if len(self.layers) < 4 else f"{self.layers[0]}+{len(self.layers) - 1}"


class WeightFormat(Protocol):
    """A way to store the weights of linear layers and embeddings.

    Attributes:
        alpha: Share of the outliers of a layer's input that is folded into its weights (see `smoothquant`).
        compensates: Whether it uses `Weight.moments`.
    """

    alpha: float
    compensates: bool

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        """Append x [..., inputs] @ weight.T and return its name, `output` or a new one."""

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        """Append the lookup of the rows `ids` [...], float32 [..., inputs], and return its name."""


class Float32:
    """Weights as they are."""

    alpha = 0.5
    compensates = False

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        return g.op("MatMul", x, g.weight(weight.name, lambda: weight.read().T), output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return g.op("Gather", g.weight(f"{weight.name}.rows", weight.read), ids)


class Half:
    """16-bit floats, half the bytes, multiplied by a GPU's tensor cores.

    Parts of a T5 that overflow 16 bits stay fp32 (huggingface/transformers#20287, `_keep_in_fp32_modules`): `wo`, and
    between the products the norms, attention and the residual sum.

    Args:
        kind: TensorProto.FLOAT16 or TensorProto.BFLOAT16.
    """

    alpha = 0.5
    compensates = False

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._dtype = helper.tensor_dtype_to_np_dtype(kind)

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        if weight.layers[0].endswith(".wo"):
            return Float32().linear(g, x, weight, output)
        values = g.weight(f"{weight.name}.{self._dtype}", lambda: weight.read().T.astype(self._dtype))
        return g.op("Cast", g.op("MatMul", g.op("Cast", x, to=self._kind), values), to=FLOAT, output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        values = g.weight(f"{weight.name}.rows.{self._dtype}", lambda: weight.read().astype(self._dtype))
        return g.op("Cast", g.op("Gather", values, ids), to=FLOAT)


class Int8:
    """8-bit arithmetic throughout, the fastest format for compute-bound layers (an encoder, large batches).

    The scale of an input comes from calibration, or from each of its rows if its peak is unknown.

    Args:
        portable: Store the same numbers as unsigned bytes around 128. x86 without VNNI adds products with signed bytes
            in 16 bits, which overflow unless a session option selects other kernels; that option has no effect on
            weights outside a loop's body. With VNNI, signed bytes take half the time.
    """

    alpha = 0.65  # divergence from fp32's next tokens on DialogSum: 0.0038 with 0.5, 0.0022, 0.0039 with 0.8
    compensates = False

    def __init__(self, *, portable: bool = False) -> None:
        self._portable = portable

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        _, step, by_row = quantised_input(g, x, weight.peak)
        if by_row:
            return g.op("Mul", self.unscaled(g, x, weight), step, output=output)
        return self.unscaled(g, x, weight, output)

    def unscaled(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        """Append `linear` without the scale of each row, if the input has one."""
        key = f"{weight.name}.{'u' * self._portable}int8"
        values = g.weight(key, lambda: self._values(weight.read()).T)
        scale = g.weight(f"{key}.scale", lambda: _scale(weight.read()))
        one, zero = g.constant(np.float32(1), "float.1"), g.constant(np.uint8(128), "uint8.128")
        zeros = (zero, zero) if self._portable else (zero,)
        quantised, step, by_row = quantised_input(g, x, weight.peak)
        factor = one if by_row else step
        return g.op("MatMulIntegerToFloat", quantised, values, factor, scale, *zeros, output=output, domain=MS)

    def _values(self, weight: np.ndarray) -> np.ndarray:
        values = _int8(weight)
        return (values.astype(np.int16) + 128).astype(np.uint8) if self._portable else values

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        key = f"{weight.name}.rows.int8"
        values = g.weight(key, lambda: _int8(weight.read()))
        scale = g.weight(f"{key}.scale", lambda: _scale(weight.read())[:, None])
        return g.op("Mul", g.op("Cast", g.op("Gather", values, ids), to=FLOAT), g.op("Gather", scale, ids))


class Blocks:
    """Weights in groups that share a scale, with the fewest bytes: for memory-bound layers (a decoder's single steps).

    Divergence from fp32's next tokens on DialogSum, and the time of FLAN-T5-small's head for one row on two Zen 4
    cores: 8 bits in blocks of 32 0.006 and 0.69 ms, of 128 0.008 and 0.33; 4 bits 0.039 and 0.38, 0.066 and 0.23.

    Args:
        bits: Bits a weight, 8 or 4.
        size: Weights in a group, a power of two from 16.
    """

    alpha = 0.4  # weights are the coarse part here: w4 diverges by 0.029 with 0.3 to 0.5, by 0.050 with 0.65

    def __init__(self, bits: int, size: int) -> None:
        self._bits, self._size = bits, size
        self.compensates = bits == 4

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        key = f"{weight.name}.w{self._bits}g{self._size}"
        rounded = cache(lambda: self._round(weight))
        values = g.weight(key, lambda: rounded()[0])
        scale = g.weight(f"{key}.scale", lambda: rounded()[1])
        return g.op(
            "MatMulNBits",
            x,
            values,
            scale,
            output=output,
            domain=MS,
            K=weight.inputs,
            N=weight.outputs,
            bits=self._bits,
            block_size=self._size,
            accuracy_level=_INT8_ARITHMETIC,
        )

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return Int8().rows(g, ids, weight)  # a table is read one row a token, so fewer bits would save no time

    def _round(self, weight: Weight) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8 [outputs, blocks, bytes] and scales; the lower half of a byte is the first 4-bit value."""
        moments = weight.moments() if self.compensates else None
        if moments is None:
            values, scale = round_to_nearest(weight.read(), self._bits, self._size)
        else:
            values, scale = round_with_compensation(weight.read(), moments, self._bits, self._size)
        return values if self._bits == 8 else values[..., 0::2] | (values[..., 1::2] << 4), scale


def _implementation(entry: Format) -> WeightFormat:
    """Return what stores weights in a format of the table."""
    if entry.bits == 32:
        return Float32()
    if entry.bits == 16:
        return Half(TensorProto.BFLOAT16 if entry.name == "bf16" else TensorProto.FLOAT16)
    return Blocks(entry.bits, entry.group) if entry.group else Int8()


WEIGHT_FORMATS = {name: _implementation(entry) for name, entry in FORMATS.items()}


def unrounded(layer: str) -> WeightFormat:
    """Return the format fp32, for any layer."""
    return WEIGHT_FORMATS["fp32"]


def formats_of(precision: Precision, family: Family) -> Callable[[str], WeightFormat]:
    """Return the choice of a format for each layer of a model, by the layer's name."""
    by_kind = {kind: WEIGHT_FORMATS[name] for kind, name in precision.items()}
    return lambda layer: by_kind[family.layer_kind(layer)]


def quantised_input(g: Graph, x: str, peak: float) -> tuple[str, str, bool]:
    """Append x as uint8 around 128, once for all layers that share it.

    Args:
        g: Graph to append to.
        x: Name of the input.
        peak: Largest magnitude of x that is kept, or 0 for a scale of each row [..., 1].

    Returns:
        Its name, the name of its scale, and whether that is by row.
    """
    zero = g.constant(np.uint8(128), "uint8.128")
    if peak:
        step = g.constant(width := np.float32(max(peak / 127, TINY)), f"float.{width:.9g}")
        return g.once(f"{x}/{step}", lambda: g.op("QuantizeLinear", x, step, zero)), step, False
    top = g.once(f"top of {x}", lambda: g.op("ReduceMax", g.op("Abs", x), g.ints(-1), keepdims=1))
    share, tiny = g.constant(np.float32(1 / 127), "float.1/127"), g.constant(np.float32(TINY), "float.tiny")
    step = g.once(f"step of {x}", lambda: g.op("Max", g.op("Mul", top, share), tiny))
    one = g.constant(np.float32(1), "float.1")
    whole = g.once(f"{x}/{step}", lambda: g.op("QuantizeLinear", g.op("Div", x, step), one, zero))
    return whole, step, True


def portable(storage: WeightFormat) -> WeightFormat:
    """Return a format of the same numbers with equal results on every processor, whatever the session."""
    return Int8(portable=True) if isinstance(storage, Int8) else storage


def _scale(weight: np.ndarray) -> np.ndarray:
    """Return the 8-bit scale of each output channel."""
    return np.maximum(np.abs(weight).max(1) / 127, TINY).astype(np.float32)


def _int8(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight / _scale(weight)[:, None]).astype(np.int8)
