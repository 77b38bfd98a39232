"""The weights of an encoder or a decoder, packed into one block of memory that the library reads as it lies there."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_ft_kernels.blocks import Block
from lora_ft_kernels.matrices import TILE, Matrix, PackedMatrix, pack, preview_of, shapes_of

ACTIVATIONS = ("relu", "gelu_new", "silu")
_NUMBERS = ("layers", "heads", "d_kv", "d_model", "d_ff", "vocabulary", "far")
_KINDS = ("joined", "self_out", "query", "cross_out", "up", "down")  # matrices of a layer
_OF_ENCODER = ("joined", "self_out", "up", "down")
# What rounding takes from a logit is noise. A preview allows for this many of its standard deviations: of all logits of
# 10,701 states (FLAN-T5-small on DialogSum) none was off by more than 4.5, and of the best ones none by more than 3.2.
_DOUBT = 8


@dataclass(frozen=True)
class Weights:
    """Weights of a decoder or an encoder.

    Attributes:
        matrices: Of each layer of a decoder: queries, keys and values side by side, the output of self-attention, the
            queries of the attention over the source, its output, the feed-forward's first projection (the gate first,
            then the other) and its last. Then the head. An encoder has no attention over a source, and in place of
            the head the projections onto the keys and the values of each decoder layer in turns, side by side.
        norms: Of each layer: three, of an encoder two, float32 [d_model]. Then the final norm.
        bias: Position bias of the first or of every layer, float32: by distance [heads, far + 1], of an encoder by
            query - key [heads, 2 * far + 1].
        embedding: int8 [vocabulary, d_model].
        embedding_scale: Float32 [vocabulary].
        ends: Tokens that end an answer.
    """

    matrices: Sequence[Matrix]
    norms: Sequence[np.ndarray]
    bias: Sequence[np.ndarray]
    embedding: np.ndarray
    embedding_scale: np.ndarray
    ends: Sequence[int]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder, or with `encoder` of an encoder; `far` is the largest distance with its own position bias."""

    layers: int
    heads: int
    d_kv: int
    d_model: int
    d_ff: int
    vocabulary: int
    far: int
    gated: bool = True
    activation: str = "gelu_new"
    epsilon: float = 1e-6
    encoder: bool = False

    @property
    def supported(self) -> bool:
        """Whether the kernel computes a stack of these sizes."""
        whole = self.d_model % TILE == 0 and self.d_ff % TILE == 0
        return self.d_kv in (32, 64, 128) and whole and self.activation in ACTIVATIONS


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in (*_NUMBERS, "gated", "activation", "bias_per_layer")),
        ("epsilon", ctypes.c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, PackedMatrix) for name in _KINDS),
        ("norms", ctypes.c_void_p * 3),
        ("bias", ctypes.c_void_p),
    ]


class _Stack(ctypes.Structure):
    _fields_ = [
        ("sizes", _Sizes),
        *((name, PackedMatrix) for name in ("head", "preview")),
        *((name, ctypes.c_void_p) for name in ("layers", "doubt", "final_norm", "embedding", "embedding_scale")),
        ("barred", ctypes.c_void_p),
        ("barred_counts", ctypes.c_int * 2),
    ]


class Stack:
    """A stack as the library reads it, which must outlive the kernel.

    Args:
        sizes: Its sizes.
        weights: Its weights; only the embedding is used after this call.

    Attributes:
        reference: Where it lies.
        shapes: (inputs, outputs) of its matrices.

    Raises:
        ValueError: The sizes are not supported, or the weights do not fit them.
    """

    def __init__(self, sizes: Sizes, weights: Weights) -> None:
        if not sizes.supported:
            raise ValueError(f"sizes are not supported (got {sizes})")
        kinds, norms = (_OF_ENCODER, 2) if sizes.encoder else (_KINDS, 3)  # of a layer
        matrices, head = list(weights.matrices), len(kinds) * sizes.layers
        if len(matrices) != head + 1:
            raise ValueError(f"the number of matrices does not fit the layers (got {len(matrices)}, needs {head + 1})")
        self.shapes = [(matrix.inputs, matrix.outputs) for matrix in matrices]
        doubt = np.zeros(0)
        if matrices[head].bits == 8 and not sizes.encoder:
            preview, losses = preview_of(matrices[head])
            matrices.append(preview)
            doubt = np.pad(losses, (0, -len(losses) % TILE)) * _DOUBT / math.sqrt(sizes.d_model)
        arrays = [*weights.norms, *weights.bias, doubt, weights.embedding_scale]
        floats = [np.asarray(array, np.float32) for array in arrays]
        shapes = [shape for matrix in matrices for shape in shapes_of(matrix)]
        block = Block([*shapes, *((array.shape, array.dtype) for array in floats)])
        packed = [pack(block, number, matrix) for number, matrix in enumerate(matrices)]
        addresses = [block.copy(array) for array in floats]
        *biases, doubts, embedding_scale = addresses[norms * sizes.layers + 1 :]
        layers = (_Layer * sizes.layers)()
        for i, layer in enumerate(layers):
            for kind, matrix in zip(kinds, packed[len(kinds) * i :], strict=False):
                setattr(layer, kind, matrix)
            layer.norms[:norms] = addresses[norms * i : norms * (i + 1)]
            layer.bias = biases[i % len(biases)]
        embedding = np.ascontiguousarray(weights.embedding)
        spare = range(matrices[head].outputs, matrices[head].outputs + -matrices[head].outputs % TILE)
        barred = np.array([*spare, *weights.ends], np.int64)
        self._kept = block, layers, embedding, barred
        numbers = (getattr(sizes, name) for name in _NUMBERS)
        activation = ACTIVATIONS.index(sizes.activation)
        self._stack = _Stack(
            _Sizes(*numbers, sizes.gated, activation, len(biases) > 1, sizes.epsilon),
            packed[head],
            packed[head + 1] if doubt.size else PackedMatrix(),
            ctypes.addressof(layers),
            final_norm=addresses[norms * sizes.layers],
            doubt=doubts,
            embedding=embedding.ctypes.data,
            embedding_scale=embedding_scale,
            barred=barred.ctypes.data,
            barred_counts=(len(spare), len(barred)),
        )
        self.reference = ctypes.byref(self._stack)
