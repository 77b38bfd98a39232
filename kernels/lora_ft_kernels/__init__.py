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

from lora_ft_kernels.adapters import Adapter, LowRank
from lora_ft_kernels.matrices import TILE, Matrix
from lora_ft_kernels.stacks import ACTIVATIONS, Sizes, Stack, Weights

__all__ = ["ACTIVATIONS", "INSTRUCTIONS", "INTERFACE", "TILE", "Adapter", "Kernel", "LowRank", "Matrix", "Memory"]
__all__ += ["Sizes", "Step", "Weights", "rounded"]
INTERFACE = 3  # number of what callers pass; another number, and a caller of this version does not fit
INSTRUCTIONS = ("avx512", "avx2", "portable")  # fastest first
_LIBRARIES = ("liblora_ft_kernels.so", "liblora_ft_kernels.dylib")


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
        *((name, ctypes.c_void_p) for name in ("ids", "mask", "lengths", "cross")),
    ]


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
            kernel.clamped(threads),
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
        self._library = _library()
        self._handle = None
        self._stack = Stack(sizes, weights)
        self.shapes = self._stack.shapes
        self._vocabulary, self._threads = sizes.vocabulary, threads
        self._cross = self.shapes[-1][1] // (sizes.heads * sizes.d_kv), sizes.heads, sizes.d_kv
        for name in (instructions,) if instructions else INSTRUCTIONS:
            self.instructions = name
            self._handle = self._library.lora_ft_open(self._stack.reference, name.encode("ascii"), threads)
            if self._handle:
                return
        raise ValueError(f"the processor lacks the instructions (asked for {instructions or INSTRUCTIONS})")

    def clamped(self, threads: int) -> int:
        """Return threads of a call, which cannot have more than the kernel."""
        return max(1, min(threads, self._threads))

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
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise ValueError(f"a token is outside the vocabulary (got {ids.min()} to {ids.max()})")
        lengths = np.max(np.arange(1, ids.shape[1] + 1, dtype=np.int64) * (mask != 0), axis=1, initial=0)
        for row, length in enumerate(lengths):
            cross[:, row, :, length:] = 0
        pointers = (ctypes.c_void_p * len(cross))(*(each.ctypes.data for each in cross))
        arrays = (array.ctypes.data for array in (ids, mask, lengths))
        call = _Sources(*ids.shape, self.clamped(threads), *arrays, ctypes.addressof(pointers))
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


def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    path = next((folder / name for name in _LIBRARIES if (folder / name).exists()), None)
    if path is None:
        raise ImportError("the library of lora_ft_kernels is not built; run `make kernels`")
    library = ctypes.CDLL(str(path))
    library.lora_ft_open.restype = ctypes.c_void_p
    library.lora_ft_open.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.lora_ft_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.lora_ft_encode.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.lora_ft_round.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    library.lora_ft_round.restype = None
    library.lora_ft_close.argtypes = [ctypes.c_void_p]
    library.lora_ft_close.restype = None
    library.lora_ft_forked.argtypes = [ctypes.c_void_p]
    library.lora_ft_forked.restype = None
    return library
