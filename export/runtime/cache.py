"""The arrays of a model between two calls: encoded sources, and the keys and values of the tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from lora_ft.export.runtime.io_binding import BoundSession, DeviceBuffer, TopK
from lora_ft.export.runtime.session import on_lines, ort_value


class Bound(Protocol):
    """A call on fixed memory."""

    def run(self, *inputs: Any) -> None:
        """Run it on these inputs."""


class Adapters(Protocol):
    """The adapters of a source's rows, as inputs of the graphs or of the kernel."""

    def cached(self, inputs: Sequence[str]) -> list[ort.OrtValue]:
        """Return values of these inputs, each [rows, …], or [1, …] if all rows have the same adapter."""

    def packed(self, pack: Callable[[Mapping[str, np.ndarray]], Any]) -> list[Any | None]:
        """Return each row's adapter as `pack` returns it, or None for the base."""

    def take(self, rows: np.ndarray) -> Adapters | None:
        """Return the adapters of some of the rows [n], or None if none has one."""


@dataclass(frozen=True)
class Source:
    """Encoded sources: their mask, and the cross-attention keys and values of every layer.

    Attributes:
        rows: Number of sources.
        values: The mask, then keys and values in the graphs' order, float32 or float16.
        adapters: Adapters of the rows, or None if no row has one.
    """

    rows: int
    values: list[ort.OrtValue]
    adapters: Adapters | None = None

    @property
    def is_rounded(self) -> bool:
        """Whether keys and values are in fp16."""
        return self.values[-1].data_type() == "tensor(float16)"

    def expanded(self) -> Source:
        """Return the sources with keys and values in float32."""
        if not self.is_rounded:
            return self
        return self.changed(lambda array: array.astype(np.float32))

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Source:
        """Return the sources with what `change` returns for each array of keys or values."""
        mask, *cross = self.values
        return replace(self, values=[mask, *(ort_value(change(value.numpy())) for value in cross)])

    def selected(self, rows: np.ndarray) -> Source:
        """Return some of the sources, by row number, int64 [n], in the processor's memory."""
        arrays = [value.numpy() for value in self.values]
        places = [on_lines(np.empty, (len(rows), *each.shape[1:]), each.dtype) for each in arrays]
        for array, place in zip(arrays, places, strict=True):
            np.take(array, rows, 0, place, "clip")  # only a mode that checks nothing writes to `place` itself
        return Source(len(rows), [ort_value(place) for place in places], self.adapters and self.adapters.take(rows))


@dataclass
class Cache:
    """Self-attention keys and values of the tokens so far, with spare capacity for later steps.

    Attributes:
        values: Keys and values in the graphs' order, each [b, heads, room, d_kv].
        rows: Number of rows.
        room: Capacity, in tokens.
        lengths: Number of tokens in each row, int64 [b], or [1] if all are equal.
        source: Sources that the bound steps read.
        steps: Steps bound to `values`, by graph, threads, output and shapes.
        spare: Second set of values and steps, the target of reordering.
        sessions: Sessions of the bound steps; a forked child replaces them.
    """

    values: list[ort.OrtValue]
    rows: int
    room: int
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    source: Source | None = None
    steps: dict[tuple[str, int, str, int, int], Step] = field(default_factory=dict)
    spare: Spare | None = None
    sessions: object = None

    def forget(self, counts: np.ndarray) -> None:
        """Remove the last `counts` [b] tokens of each row."""
        self.lengths = self.lengths - (counts[:1] if (counts == counts[0]).all() else counts)

    def grow(self, length: int, provider: str) -> None:
        """Double the capacity until `length` fits, so that copying takes a small share of a long answer's time."""
        room = self.room
        while room < length:
            room *= 2
        values = []
        for value in self.values:
            array = value.numpy()
            larger = on_lines(np.zeros, (*array.shape[:2], room, array.shape[3]))
            larger[:, :, : self.room] = array
            values.append(ort_value(larger, provider))
        self.hold(values, self.rows, room)

    def hold(self, values: list[ort.OrtValue], rows: int, room: int) -> None:
        """Replace the values, and forget the steps bound to the previous ones."""
        self.values, self.rows, self.room, self.steps, self.spare = values, rows, room, {}, None


@dataclass(frozen=True)
class Step:
    """A bound step and its output.

    Attributes:
        bound: The step, of a graph or of the kernel.
        output: Memory of its output.
        rankings: Rankings of the output, by (number of tokens, whether by log-probabilities).
    """

    bound: Bound
    output: DeviceBuffer
    rankings: dict[tuple[int, bool], TopK] = field(default_factory=dict)


@dataclass
class Spare:
    """The second buffer of a cache whose rows are reordered, and the bound copies to it and back."""

    values: list[ort.OrtValue]
    steps: dict[tuple[str, int, str, int, int], Step]
    forth: BoundSession
    back: BoundSession
