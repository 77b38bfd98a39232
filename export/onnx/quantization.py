"""The weight formats of `lora_ft.export.precision` as ONNX nodes: one small class per kind of storage and arithmetic.

    Float32  plain MatMul
    Half     16-bit floats; the feed-forward's last projection and everything besides products stay fp32
    Int8     8-bit weights with a scale per output channel; 8-bit activations with a calibrated scale, or one per row
    Blocks   8-bit or 4-bit weights in groups of inputs; activations are quantized at run time, by row and group

Of the 4-bit formats, w4g128 takes a fifth less time per step than w4, but its rounding loss is 50 % larger.

Scales of activations are constants or belong to a row. Other runtimes compute the range over the whole batch, so the
answer to a row depends on its neighbors. In int8 a row's sums are those of integers, so they are exact. Kernels of the
other rounded formats add in an order that changes with the number of rows (`Format.independent`). With int8-w4, 52 of
60 answers were equal in another batch.
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

_INT8_ARITHMETIC = 4  # accuracy_level: activations are quantized to int8 by blocks


@dataclass(frozen=True)
class Weight:
    """A matrix that is read only when a graph stores it.

    Attributes:
        layers: Names of the layers. Several layers share their input and are side by side.
        outputs, inputs: Shape of the matrix.
        read: Returns the float32 array [outputs, inputs].
        peak: Largest magnitude of the layer's input in calibration; 0 if the input needs a scale per row.
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
        """Name of the stored matrix."""
        return "+".join(self.layers) if len(self.layers) < 4 else f"{self.layers[0]}+{len(self.layers) - 1}"


class WeightFormat(Protocol):
    """A way to store the weights of linear layers and embeddings.

    Attributes:
        alpha: Share of the outliers of a layer's input that is folded into its weights (see `smoothquant`).
        compensates: Whether the format uses `Weight.moments`.
    """

    alpha: float
    compensates: bool

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        """Append x [..., inputs] @ weight.T and return its name: `output`, or a new name."""

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        """Append the lookup of the rows `ids` [...], float32 [..., inputs], and return its name."""


class Float32:
    """Weights in 32-bit floats."""

    alpha = 0.5
    compensates = False

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        return g.op("MatMul", x, g.weight(weight.name, lambda: weight.read().T), output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        return g.op("Gather", g.weight(f"{weight.name}.rows", weight.read), ids)


class Half:
    """Weights in 16-bit floats: half the bytes, multiplied by the tensor cores of a GPU.

    Parts that overflow 16 bits stay fp32: between products the norms, attention and the residual sum, and the layers in
    `Family.KEPT_FP32`, for which `formats_of` returns fp32.

    Args:
        kind: TensorProto.FLOAT16 or TensorProto.BFLOAT16.
    """

    alpha = 0.5
    compensates = False

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._dtype = helper.tensor_dtype_to_np_dtype(kind)

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        values = g.weight(f"{weight.name}.{self._dtype}", lambda: weight.read().T.astype(self._dtype))
        return g.op("Cast", g.op("MatMul", g.op("Cast", x, to=self._kind), values), to=FLOAT, output=output)

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        values = g.weight(f"{weight.name}.rows.{self._dtype}", lambda: weight.read().astype(self._dtype))
        return g.op("Cast", g.op("Gather", values, ids), to=FLOAT)


class Int8:
    """8-bit arithmetic throughout, the fastest format for compute-bound layers (an encoder, large batches).

    The scale of an input comes from calibration, or from each row if the peak is unknown.

    Args:
        portable: Store the same numbers as unsigned bytes around 128. x86 without VNNI adds products with signed bytes
            in 16 bits, which overflow unless a session option selects other kernels. That option has no effect on
            weights outside a loop's body. With VNNI, signed bytes take half the time.
    """

    alpha = 0.65  # divergence from fp32 on DialogSum: 0.0022, against 0.0038 with 0.5 and 0.0039 with 0.8
    compensates = False

    def __init__(self, *, portable: bool = False) -> None:
        self._portable = portable

    def linear(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        _, step, by_row = quantized_input(g, x, weight.peak)
        if by_row:
            return g.op("Mul", self.unscaled(g, x, weight), step, output=output)
        return self.unscaled(g, x, weight, output)

    def unscaled(self, g: Graph, x: str, weight: Weight, output: str | None = None) -> str:
        """Append `linear` without the scale per row, if the input has one."""
        key = f"{weight.name}.{'u' * self._portable}int8"
        values = g.weight(key, lambda: self._values(weight.read()).T)
        scale = g.weight(f"{key}.scale", lambda: _scale(weight.read()))
        unit, zero = g.constant(np.float32(1), "float.1"), g.constant(np.uint8(128), "uint8.128")
        zeros = (zero, zero) if self._portable else (zero,)
        quantized, step, by_row = quantized_input(g, x, weight.peak)
        factor = unit if by_row else step
        return g.op("MatMulIntegerToFloat", quantized, values, factor, scale, *zeros, output=output, domain=MS)

    def _values(self, weight: np.ndarray) -> np.ndarray:
        values = _int8(weight)
        return (values.astype(np.int16) + 128).astype(np.uint8) if self._portable else values

    def rows(self, g: Graph, ids: str, weight: Weight) -> str:
        key = f"{weight.name}.rows.int8"
        values = g.weight(key, lambda: _int8(weight.read()))
        scale = g.weight(f"{key}.scale", lambda: _scale(weight.read())[:, None])
        return g.op("Mul", g.op("Cast", g.op("Gather", values, ids), to=FLOAT), g.op("Gather", scale, ids))


class Blocks:
    """Weights in groups that share a scale, the fewest bytes: for memory-bound layers (single steps of a decoder).

    Divergence from fp32's next tokens on DialogSum, and time of FLAN-T5-small's head for one row on two Zen 4 cores:

        8 bits, groups of 32   0.006  0.69 ms      4 bits, groups of 32   0.039  0.38 ms
        8 bits, groups of 128  0.008  0.33 ms      4 bits, groups of 128  0.066  0.23 ms

    Args:
        bits: Bits per weight, 8 or 4.
        size: Weights per group, a power of two from 16.
    """

    alpha = 0.4  # rounding of weights dominates: w4 diverges by 0.029 with 0.3 to 0.5, and by 0.050 with 0.65

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
        return Int8().rows(g, ids, weight)  # a token reads one row of the table, so fewer bits would save no time

    def _round(self, weight: Weight) -> tuple[np.ndarray, np.ndarray]:
        """Return (uint8 [outputs, blocks, bytes], scales). The lower half of a byte is the first 4-bit value."""
        moments = weight.moments() if self.compensates else None
        if moments is None:
            values, scale = round_to_nearest(weight.read(), self._bits, self._size)
        else:
            values, scale = round_with_compensation(weight.read(), moments, self._bits, self._size)
        return values if self._bits == 8 else values[..., 0::2] | (values[..., 1::2] << 4), scale


def _implementation(entry: Format) -> WeightFormat:
    """Return the implementation of a format of the table."""
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
    """Return a function from a layer's name to its format."""
    by_kind = {kind: WEIGHT_FORMATS[name] for kind, name in precision.items()}

    def format_of(layer: str) -> WeightFormat:
        storage = by_kind[family.layer_kind(layer)]
        return unrounded(layer) if isinstance(storage, Half) and layer.endswith(family.KEPT_FP32) else storage

    return format_of


def quantized_input(g: Graph, x: str, peak: float) -> tuple[str, str, bool]:
    """Append x as uint8 around 128, once for all layers that share the input.

    Args:
        g: Graph to append to.
        x: Name of the input.
        peak: Largest magnitude of x, beyond which it is clipped, or 0 for a scale per row [..., 1].

    Returns:
        (name of the quantized input, name of its scale, whether the scale is per row).
    """
    zero = g.constant(np.uint8(128), "uint8.128")
    if peak:
        step = g.constant(width := np.float32(max(peak / 127, TINY)), f"float.{width:.9g}")
        return g.once(f"{x}/{step}", lambda: g.op("QuantizeLinear", x, step, zero)), step, False
    top = g.once(f"top of {x}", lambda: g.op("ReduceMax", g.op("Abs", x), g.ints(-1), keepdims=1))
    share, tiny = g.constant(np.float32(1 / 127), "float.1/127"), g.constant(np.float32(TINY), "float.tiny")
    step = g.once(f"step of {x}", lambda: g.op("Max", g.op("Mul", top, share), tiny))
    unit = g.constant(np.float32(1), "float.1")
    quantized = g.once(f"{x}/{step}", lambda: g.op("QuantizeLinear", g.op("Div", x, step), unit, zero))
    return quantized, step, True


def portable(storage: WeightFormat) -> WeightFormat:
    """Return a format of the same numbers with equal results on every processor, regardless of session options."""
    return Int8(portable=True) if isinstance(storage, Int8) else storage


def _scale(weight: np.ndarray) -> np.ndarray:
    """Return the 8-bit scale of each output channel."""
    return np.maximum(np.abs(weight).max(1) / 127, TINY).astype(np.float32)


def _int8(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight / _scale(weight)[:, None]).astype(np.int8)
