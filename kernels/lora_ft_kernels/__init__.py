"""The decoder step and the encoder of a T5 as single calls, on numpy arrays, with weights in 8 or 4 bits.

The result for a token has the same bits whatever other rows and tokens a call has, and however a source is padded. It
depends on neither lora-ft nor ONNX Runtime, and on nothing but numpy and the processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_ft_kernels.adapters import TILE, Adapter, LowRank

__all__ = ["ACTIVATIONS", "INSTRUCTIONS", "INTERFACE", "TILE", "Adapter", "Kernel", "LowRank", "Matrix", "Memory"]
__all__ += ["Sizes", "Step", "Weights", "rounded"]
INTERFACE = 3  # number of what callers pass; another number, and a caller of this version does not fit
INSTRUCTIONS = ("avx512", "avx2", "portable")  # fastest first
ACTIVATIONS = ("relu", "gelu_new", "silu")
_LIBRARIES = ("liblora_ft_kernels.so", "liblora_ft_kernels.dylib")
_NUMBERS = ("layers", "heads", "d_kv", "d_model", "d_ff", "vocabulary", "far")
_SIZES = (*_NUMBERS, "gated", "activation", "bias_per_layer", "encoder")


class _Sizes(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int) for name in _SIZES), ("epsilon", ctypes.c_float)]


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("outputs", "inputs", "bits", "group")),
        ("step", ctypes.c_float),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


class _Weights(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("matrices", "norms", "bias", "embedding", "embedding_scale", "ends")),
        ("ends_count", ctypes.c_int),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("rows", "tokens", "sources", "source_length")),
        *((name, ctypes.c_int) for name in ("room", "lengths_count", "threads", "forbid_ends")),
        *((name, ctypes.c_void_p) for name in ("ids", "lengths", "mask", "past", "cross", "next")),
        *((name, ctypes.c_void_p) for name in ("logits", "adapters")),
    ]


class _Sources(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("rows", "length", "threads")),
        *((name, ctypes.c_void_p) for name in ("ids", "mask", "cross")),
    ]


@dataclass(frozen=True)
class Matrix:
    """Weights of a linear layer.

    Attributes:
        values: int8 [inputs, outputs], or if `group`: uint8 [outputs, inputs * bits / 8], around the middle of their
            range; the lower half of a byte is the first 4-bit value.
        scales: Float32 [outputs], or if `group`: [outputs, inputs / group].
        bits: 8, or 4 with a group.
        group: Inputs that share a scale, a multiple of 16, or 0. Their input then has a scale per row and group, too.
        step: Fixed scale of the input, or 0 for a scale per row.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int = 8
    group: int = 0
    step: float = 0.0


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


@dataclass(frozen=True)
class Memory:
    """Addresses of the arrays of a call, which must outlive it.

    Attributes:
        mask: Int64 [sources, length].
        cross, past: Keys and values of each layer in turns, of the sources [sources, heads, length, d_kv] as
            `rounded` returns them, of the tokens float32 [rows, heads, room, d_kv].
        sources, length, room: Their sizes. Rows share a source, rows / sources consecutive ones each.
        adapters: Adapter of each source's rows or None; empty if there is none.
    """

    mask: int
    cross: Sequence[int]
    past: Sequence[int]
    sources: int
    length: int
    room: int
    adapters: Sequence[Adapter | None] = ()


class Step:
    """A call with fixed memory.

    Args:
        kernel: The kernel.
        memory: Memory of its keys and values.
        shape: (rows, tokens of each).
        lengths: Number of lengths of a call: 1 or the rows.
        threads: Threads of a call.
        logits: Float32 [rows, tokens, vocabulary] to be written, or None.

    Attributes:
        next: Likeliest token after each token, int64 [rows, tokens], of the last call.
    """

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        shape: tuple[int, int],
        lengths: int,
        threads: int,
        logits: np.ndarray | None = None,
    ) -> None:
        self._kernel, self._logits = kernel, logits
        self._ids, self._lengths = np.zeros(shape, np.int64), np.zeros(lengths, np.int64)
        self.next = np.zeros(shape, np.int64)
        pointers = [(ctypes.c_void_p * len(each))(*each) for each in (memory.past, memory.cross)]
        adapters = (ctypes.c_void_p * memory.sources)(*(each and each.address for each in memory.adapters))
        self._kept = pointers, adapters, memory.adapters
        self._call = _Call(
            *shape,
            memory.sources,
            memory.length,
            memory.room,
            lengths,
            threads,
            0,
            self._ids.ctypes.data,
            self._lengths.ctypes.data,
            memory.mask,
            *(ctypes.addressof(each) for each in pointers),
            self.next.ctypes.data,
            None if logits is None else logits.ctypes.data,
            ctypes.addressof(adapters) if memory.adapters else None,
        )
        self._reference = ctypes.byref(self._call)

    def run(self, tokens: np.ndarray, lengths: np.ndarray, forbid_ends: bool = False) -> None:
        """Append these tokens to the keys and values, and compute `next` and the logits.

        Args:
            tokens: Next tokens, int64 [rows, tokens].
            lengths: Tokens before them in each row, int64 [rows] or [1].
            forbid_ends: Do not choose a token that ends an answer.

        Raises:
            ValueError: A token is outside the vocabulary, or the tokens do not fit in the room.
            MemoryError: The memory does not suffice.
        """
        self._ids[...] = tokens
        self._lengths[...] = lengths
        self._call.forbid_ends = bool(forbid_ends)
        self._kernel.run(self._reference)


class Kernel:
    """A decoder or an encoder in the memory of the kernel.

    Args:
        sizes: Sizes of the stack.
        weights: Its weights; only the embedding is used after this call.
        threads: Most threads of a call.
        instructions: One of `INSTRUCTIONS`, or "" for the fastest that the processor has.

    Attributes:
        instructions: The instructions in use.
        shapes: (inputs, outputs) of its matrices.

    Raises:
        ValueError: The sizes are not supported, the weights do not fit them, or the processor lacks the instructions.
    """

    def __init__(self, sizes: Sizes, weights: Weights, threads: int, instructions: str = "") -> None:
        if not sizes.supported:
            raise ValueError(f"sizes are not supported (got {sizes})")
        self._library = _library()
        self._handle = None
        matrices = [_pointers(matrix) for matrix in weights.matrices]
        if len(matrices) != (expected := (4 if sizes.encoder else 6) * sizes.layers + 1):
            raise ValueError(f"the number of matrices does not fit the layers (got {len(matrices)}, needs {expected})")
        self.shapes = [(matrix.inputs, matrix.outputs) for matrix, _ in matrices]
        self._cross = matrices[-1][0].outputs // (sizes.heads * sizes.d_kv), sizes.heads, sizes.d_kv
        self._embedding = np.ascontiguousarray(weights.embedding)
        scale = np.ascontiguousarray(weights.embedding_scale, np.float32)
        norms, bias = (
            [np.ascontiguousarray(each, np.float32) for each in arrays] for arrays in (weights.norms, weights.bias)
        )
        pointers = [(ctypes.c_void_p * len(each))(*(array.ctypes.data for array in each)) for each in (norms, bias)]
        ends = np.array(weights.ends, np.int64)
        listed = (_Matrix * len(matrices))(*(matrix for matrix, _ in matrices))
        pointed = _Weights(
            ctypes.addressof(listed),
            *(ctypes.addressof(each) for each in pointers),
            self._embedding.ctypes.data,
            scale.ctypes.data,
            ends.ctypes.data,
            len(ends),
        )
        activation = ACTIVATIONS.index(sizes.activation)
        numbers = (getattr(sizes, name) for name in _NUMBERS)
        plain = _Sizes(*numbers, sizes.gated, activation, len(bias) > 1, sizes.encoder, sizes.epsilon)
        for name in (instructions,) if instructions else INSTRUCTIONS:
            self.instructions = name
            self._handle = self._library.lora_ft_open(
                ctypes.byref(plain), ctypes.byref(pointed), name.encode("ascii"), threads
            )
            if self._handle:
                return
        raise ValueError(f"the processor lacks the instructions (asked for {instructions or INSTRUCTIONS})")

    def run(self, call: object) -> None:
        """Run a call of `Step`."""
        self._check(self._library.lora_ft_step(self._handle, call))

    def _check(self, code: int) -> None:
        match code:
            case 1:
                raise ValueError("a token is outside the vocabulary, or the tokens do not fit in the room")
            case 2:
                raise MemoryError

    def encode(self, ids: np.ndarray, mask: np.ndarray, cross: np.ndarray, threads: int) -> None:
        """Write the keys and values of sources, zeros behind the last token that is not masked.

        Args:
            ids, mask: Tokens and their mask, int64 [b, s].
            cross: Memory of the keys and values of each layer of the decoder in turns, float16
                [2 * layers, b, heads, s, d_kv].
            threads: Threads of the call.

        Raises:
            ValueError: A token is outside the vocabulary, or the memory has another shape.
            MemoryError: The memory does not suffice.
        """
        ids, mask = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(mask, np.int64)
        shape = self._cross[0], ids.shape[0], self._cross[1], ids.shape[1], self._cross[2]
        if mask.shape != ids.shape or cross.shape != shape or cross.dtype != np.float16 or not cross.flags.c_contiguous:
            raise ValueError(f"keys and values are no float16 of the shape {shape} (got {cross.dtype} {cross.shape})")
        pointers = (ctypes.c_void_p * len(cross))(*(each.ctypes.data for each in cross))
        call = _Sources(*ids.shape, threads, ids.ctypes.data, mask.ctypes.data, ctypes.addressof(pointers))
        self._check(self._library.lora_ft_encode(self._handle, ctypes.byref(call)))

    def begin_again(self) -> None:
        """Start threads in a forked child, which lacks those of its parent."""
        self._library.lora_ft_forked(self._handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lora_ft_close(self._handle)


def rounded(values: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to the nearest float16, at most 65504, in the memory `to` of the same shape.

    Raises:
        ValueError: One of them has another shape, type or order.
    """
    fits = values.shape == to.shape and (values.dtype, to.dtype) == (np.float32, np.float16)
    if not fits or not values.flags.c_contiguous or not to.flags.c_contiguous:
        raise ValueError(f"{values.dtype} {values.shape} do not fit {to.dtype} {to.shape}")
    _library().lora_ft_round(values.ctypes.data, to.ctypes.data, values.size)
    return to


def _pointers(matrix: Matrix) -> tuple[_Matrix, list[np.ndarray]]:
    """Return a matrix as the library takes it, and the arrays to keep alive."""
    values, scales = np.ascontiguousarray(matrix.values), np.ascontiguousarray(matrix.scales, np.float32)
    if matrix.group:
        outputs, inputs = scales.shape[0], scales.shape[1] * matrix.group
        fits = values.nbytes * 8 == outputs * inputs * matrix.bits and matrix.group % 16 == 0
    else:
        inputs, outputs = values.shape
        fits = matrix.bits == 8 and scales.shape == (outputs,)
    if not fits:
        raise ValueError(
            f"values {values.shape} and scales {scales.shape} are no matrix of {matrix.bits} bits in groups of "
            f"{matrix.group}"
        )
    pointers = values.ctypes.data, scales.ctypes.data
    return _Matrix(outputs, inputs, matrix.bits, matrix.group, matrix.step, *pointers), [values, scales]


def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    path = next((folder / name for name in _LIBRARIES if (folder / name).exists()), None)
    if path is None:
        raise ImportError("the library of lora_ft_kernels is not built; run `make kernels`")
    library = ctypes.CDLL(str(path))
    library.lora_ft_open.restype = ctypes.c_void_p
    library.lora_ft_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.lora_ft_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.lora_ft_encode.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.lora_ft_round.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    library.lora_ft_round.restype = None
    library.lora_ft_close.argtypes = [ctypes.c_void_p]
    library.lora_ft_close.restype = None
    library.lora_ft_forked.argtypes = [ctypes.c_void_p]
    library.lora_ft_forked.restype = None
    return library
