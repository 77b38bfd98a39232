"""Rows of many requests that take their steps together, in one pool of cache memory.

A lane is a set of arrays: self-attention keys and values [most, heads, room, d_kv], those of the cross-attention
[most, heads, source length, d_kv], in fp16 if the kernel takes the steps, the mask, and in a bank each row's adapter.
Rows lie side by side from slot 0 on, so a step of `b` rows runs on the first `b` rows of every array, which are
contiguous memory: nothing is copied for it, and the bound step of each `b` is kept (`Model`). A row that joins is
written behind the last one. If one leaves, the last row moves into its slot.

The arrays have as many rows as may ever run, in anonymous memory that the system provides page by page as it is first
written. So a lane never copies its rows to have room for another one, and takes the memory of the rows that it has had.

All rows of a lane share a source length, to which shorter sources are padded, and a room, the number of answer tokens
that fit. `resize` changes them by copying.

On a GPU the arrays are the host's copies: the rows are fetched before a change and sent after it, so a change costs a
transfer of the lane.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from lora_ft.export.runtime.bank import RowAdapters
from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.session import ort_value

_VIEWS = 128  # kept sets of bound steps; a lane of 32 rows in 4 adapters needs no more
_FORGOTTEN = object()  # a row of the stack has arrays of an adapter that was let go


@dataclass
class Encoded:
    """One encoded source, ready to join a lane.

    Attributes:
        source: The source [1, s], which has the memory of `cross`.
        length: Length of the source, in tokens; the rest of `cross` is padding.
        adapter: Adapter of the source, or None for the base.
    """

    source: Source
    length: int
    adapter: RowAdapters | None

    @property
    def cross(self) -> list[np.ndarray]:
        """Cross-attention keys and values in the graphs' order, each [1, heads, s, d_kv]."""
        return [value.numpy() for value in self.source.values[1:]]


@dataclass
class _Mixed:
    """Adapters of rows that have different ones.

    Attributes:
        rows: The adapter of each row when the view was built.
        arrays: For each input of the graphs, one array [rows, …]; none for the kernel.
        provider: "cpu" or "cuda".
    """

    rows: list[RowAdapters | None]
    arrays: dict[str, np.ndarray]
    provider: str

    def cached(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return the values of a graph's inputs, each [rows, …]."""
        return [ort_value(self.arrays[name], self.provider) for name in inputs]

    def packed(self, pack: Callable[[Mapping[str, np.ndarray]], Any]) -> list[Any | None]:
        """Return each row's adapter as the kernel takes it, or None for the base."""
        return [row and row.packed(pack)[0] for row in self.rows]

    def take(self, rows: np.ndarray) -> _Mixed:
        """Return the adapters of some of the rows [n]."""
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        return _Mixed([self.rows[i] for i in rows], arrays, self.provider)


class Lane:
    """Rows that take their steps together.

    Args:
        model: Graphs of the bundle.
        source_length: Length that sources are padded to, in tokens.
        room: Answer tokens that fit in a row.
        most: Rows that fit.

    Attributes:
        lengths: Tokens of each slot's answer so far, int64 [most].
        source_lengths: Source tokens of each slot, int64 [most].
        rows: Number of slots in use.
        touched: Number of slots that have been in use, and so take memory.
    """

    def __init__(self, model: Model, source_length: int, room: int, most: int) -> None:
        self._model = model
        self._heads, self._d_kv = model.head_shape
        self._count = len(model.cache_names)
        self.source_length, self.room, self.most, self.rows, self.touched = source_length, room, most, 0, 0
        self.lengths = np.zeros(most, np.int64)
        self.source_lengths = np.zeros(most, np.int64)
        self._past, self._cross, self._mask = self._allocated()
        self._adapters: list[RowAdapters | None] = [None] * most
        self._stacked: dict[str, np.ndarray] | None = None
        self._stacked_arrays: list[object] = [None] * most  # whose arrays each row of the stack has; zeros for None
        self._views: dict[tuple[int, str], tuple[Source, Cache]] = {}
        self._on_device: Cache | None = None  # the rows' latest keys and values, where a GPU has them

    def _allocated(self) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return empty self-attention and cross-attention keys and values, and a mask."""
        kinds = (self.room, np.float32), (self.source_length, np.float16 if self._model.kernel else np.float32)
        past, cross = (
            [lazy_zeros((self.most, self._heads, length, self._d_kv), dtype) for _ in range(self._count)]
            for length, dtype in kinds
        )
        return past, cross, np.zeros((self.most, self.source_length), np.int64)

    @property
    def size(self) -> int:
        """Memory of the lane, in bytes."""
        arrays = (self._mask, *self._past, *self._cross, *(self._stacked or {}).values())
        return self.touched * sum(array.nbytes // self.most for array in arrays)

    @property
    def padding(self) -> int:
        """Source tokens that every step reads in vain."""
        return self.rows * self.source_length - int(self.source_lengths[: self.rows].sum())

    def add(self, encoded: Encoded) -> int:
        """Let a row join, and return its slot; the lane must have a spare row and the source must fit."""
        self._fetch()
        slot, length = self.rows, encoded.length
        for array, values in zip(self._cross, encoded.cross, strict=True):
            array[slot, :, :length] = values[0, :, :length]
            array[slot, :, length:] = 0
        self._mask[slot] = np.arange(self.source_length) < length
        self.lengths[slot], self.source_lengths[slot] = 0, length
        self._adapters[slot] = encoded.adapter
        self.rows += 1
        self.touched = max(self.touched, self.rows)
        self._stack(slot)
        return slot

    def remove(self, slot: int) -> int | None:
        """Let a row leave, and return the slot of the row that has moved into its place, or None."""
        self._fetch()
        last = self.rows - 1
        self.rows = last
        if slot == last:
            self._adapters[slot] = None
            return None
        self._move(self, last, slot)
        self._adapters[last] = None
        return last

    def absorb(self, other: Lane) -> list[int]:
        """Take over all rows of another lane, and return their slots here, in order of their slots there."""
        self._fetch()
        other._fetch()
        slots = []
        for slot in range(other.rows):
            self.rows += 1
            self.touched = max(self.touched, self.rows)
            self._move(other, slot, self.rows - 1)
            slots.append(self.rows - 1)
        other.rows = 0
        return slots

    def _move(self, origin: Lane, old: int, new: int) -> None:
        """Copy a row into a slot of this lane."""
        length, source = int(origin.lengths[old]), int(origin.source_lengths[old])
        for array, before in zip(self._past, origin._past, strict=True):
            array[new, :, :length] = before[old, :, :length]
        for array, before in zip(self._cross, origin._cross, strict=True):
            array[new, :, :source] = before[old, :, :source]
            array[new, :, source:] = 0
        self._mask[new] = np.arange(self.source_length) < source
        self.lengths[new], self.source_lengths[new] = length, source
        self._adapters[new] = origin._adapters[old]
        self._stack(new)

    def forget_adapters(self) -> None:
        """Let go of adapters that no row has, so that files of adapters that a bank no longer has are closed."""
        self._views = {key: view for key, view in self._views.items() if not key[1]}
        for slot in range(self.rows, self.most):
            self._adapters[slot], self._stacked_arrays[slot] = None, _FORGOTTEN

    def reorder(self, slots: Sequence[int], order: np.ndarray) -> None:
        """Let row i of these slots continue the answer of row order[i]; all share a source."""
        self._fetch()
        targets = np.array(slots)
        origins = targets[order]
        longest = int(self.lengths[origins].max())
        for array in self._past:
            array[targets, :, :longest] = array[origins, :, :longest]
        self.lengths[targets] = self.lengths[origins]

    def forget(self, slots: Sequence[int], counts: np.ndarray) -> None:
        """Remove the last `counts` [n] tokens of these slots' answers."""
        self.lengths[list(slots)] -= counts

    def resize(self, *, source_length: int, room: int) -> None:
        """Change the sizes, which must fit the rows, and give back the memory of unused rows."""
        self._fetch()
        longest = int(self.lengths[: self.rows].max(initial=0))
        width = int(self.source_lengths[: self.rows].max(initial=0))
        before = self._past, self._cross, self._mask
        self.source_length, self.room, self.touched = source_length, room, self.rows
        self._past, self._cross, self._mask = self._allocated()
        for new, old in zip(self._past, before[0], strict=True):
            new[: self.rows, :, :longest] = old[: self.rows, :, :longest]
        for new, old in zip(self._cross, before[1], strict=True):
            new[: self.rows, :, :width] = old[: self.rows, :, :width]
        self._mask[: self.rows, :width] = before[2][: self.rows, :width]
        self._stacked, self._views = None, {}
        if self.rows:
            self._stack(0)

    def next(self, tokens: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Take a step of all rows, and return the likeliest tokens [rows, 1] after these [rows, 1]."""
        source, cache = self._view()
        return self._model.step(source, cache, tokens, threads=threads)

    def logits(self, tokens: np.ndarray, threads: int | None = None, columns: np.ndarray | None = None) -> np.ndarray:
        """Take a step of all rows, and return the logits [rows, 1, vocabulary], which the next call overwrites.

        With `columns` [n], return the logits [rows, 1, n] of these tokens.
        """
        source, cache = self._view()
        return self._model.logits(source, cache, tokens, columns=columns, copy=False, threads=threads)

    def advance(self, slots: Sequence[int]) -> None:
        """Count the tokens of the latest step as part of these slots' answers; those of other slots are dropped."""
        self.lengths[list(slots)] += 1

    def alone(self, slot: int) -> tuple[Source, Cache]:
        """Return one row, for calls of several tokens; the caller adds their number to `lengths`."""
        self._fetch()
        self._views = {} if self._model.provider != "cpu" else self._views
        return self._build(slot, slot + 1)

    def _view(self) -> tuple[Source, Cache]:
        """Return the rows in use as a source and a cache, whose bound steps are kept."""
        key = self.rows, self._adapter_key()
        if key not in self._views:
            if len(self._views) >= _VIEWS:
                self._views = {}
            self._views[key] = self._build(0, self.rows)
        source, cache = self._views[key]
        cache.lengths = self.lengths[: self.rows]
        if self._model.provider != "cpu":
            self._on_device = cache
        return source, cache

    def _adapter_key(self) -> str:
        """Return "" if no row has an adapter, a key of the adapter that all rows have, or one for different ones.

        The graphs' inputs of different adapters are the stack, whatever it holds. The kernel's are each row's own.
        """
        rows = self._adapters[: self.rows]
        if all(_same(rows[0], other) for other in rows[1:]):
            rows = rows[:1]
        elif self._model.kernel is None:
            return "mixed"
        return "/".join(f"{id(_arrays_of(row))} {row.names[0]}" if row else "" for row in rows)

    def _build(self, begin: int, end: int) -> tuple[Source, Cache]:
        provider = self._model.provider
        values = [ort_value(array[begin:end], provider) for array in (self._mask, *self._cross)]
        first = self._adapters[begin]
        adapters: RowAdapters | _Mixed | None = None
        if any(not _same(first, other) for other in self._adapters[begin:end]):
            stacked = {name: array[begin:end] for name, array in (self._stacked or {}).items()}
            adapters = _Mixed(self._adapters[begin:end], stacked, provider)
        elif first is not None:
            adapters = RowAdapters(first.bank, first.names * (end - begin))
        past = [ort_value(array[begin:end], provider) for array in self._past]
        cache = Cache(past, end - begin, self.room, lengths=self.lengths[begin:end].copy())
        return Source(end - begin, values, adapters), cache

    def _stack(self, slot: int) -> None:
        """Write the row's adapter into the stack of the graphs' inputs, once rows have had different ones."""
        if self._model.kernel is not None:
            return
        if self._stacked is not None:
            self._write_adapter(slot)
            return
        first = self._adapters[0]
        if all(_same(first, other) for other in self._adapters[1 : self.rows]):
            return
        bank = next(adapter.bank for adapter in self._adapters if adapter)
        names = {name for graph, names in bank.inputs.items() if not graph.endswith("encoder") for name in names}
        shapes = {name: bank.shapes[name] for name in names}
        self._stacked = {name: lazy_zeros((self.most, *shape), dtype) for name, (dtype, shape) in shapes.items()}
        self._stacked_arrays = [None] * self.most
        for place in range(self.rows):
            self._write_adapter(place)

    def _write_adapter(self, slot: int) -> None:
        assert self._stacked is not None
        adapter = self._adapters[slot]
        arrays = _arrays_of(adapter) if adapter else None
        if self._stacked_arrays[slot] is arrays:
            return
        self._stacked_arrays[slot] = arrays
        for name, array in self._stacked.items():
            array[slot] = 0 if arrays is None else arrays[name]

    def _fetch(self) -> None:
        """Copy the rows from a GPU before they change; the next step sends them again."""
        if self._on_device is not None:
            for array, value in zip(self._past, self._on_device.values, strict=True):
                array[: self._on_device.rows] = value.numpy()
            self._on_device, self._views = None, {}


def _same(left: RowAdapters | None, right: RowAdapters | None) -> bool:
    """Return whether two rows have the same weights; a bank that was read again shares those that have not changed."""
    if left is None or right is None:
        return left is right
    return _arrays_of(left) is _arrays_of(right)


def _arrays_of(adapter: RowAdapters) -> dict[str, np.ndarray]:
    """Return the arrays of a row's adapter, by the graphs' inputs."""
    return adapter.bank.arrays(adapter.names[0] or "")


def lazy_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros whose pages take memory only once they are written, however large the array is.

    `np.zeros` does not promise that: the C library zeroes memory that it uses again, which takes 1 ms per 10 MB.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)
