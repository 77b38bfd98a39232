"""Graphs bound to memory: what one writes the next one reads where it lies, and nothing is allocated between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from lora_ft.export.runtime.native_session import bind
from lora_ft.export.runtime.session import ort_value

Edit = Callable[[np.ndarray], None]  # changes scores [b, vocabulary] in place


class BoundSession:
    """A graph bound to memory, so that nothing is bound or allocated between two calls of one kind.

    Args:
        session: of the graph.
        fixed: names and values of the inputs that stay the same.
        made: names and memory of what it puts out.
        given: names and examples of the other inputs, of the types and shapes that all calls have.
        device: where it runs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        fixed: Mapping[str, ort.OrtValue],
        made: Mapping[str, ort.OrtValue],
        given: Mapping[str, np.ndarray],
        device: str,
    ) -> None:
        self._given = {name: np.array(array) for name, array in given.items()}
        values = {name: ort_value(array) for name, array in self._given.items()}
        self._kept = {**fixed, **made, **values}
        binding = bind(session, {**fixed, **values}, made, copied=() if device == "cpu" else list(values))
        self._run, self._copies = binding.run, binding.copies

    def run(self, *given: np.ndarray | bool) -> None:
        """Fill the bound memory for these inputs, in the order of `given`."""
        for array, new in zip(self._given.values(), given, strict=True):
            array[...] = new
        for copy in self._copies:
            copy()
        self._run()


@dataclass(frozen=True)
class DeviceBuffer:
    """What a graph writes and the next one reads; `array` shows it where it lies in the processor's memory."""

    value: ort.OrtValue
    array: np.ndarray | None

    @classmethod
    def of(cls, array: np.ndarray, device: str) -> DeviceBuffer:
        """Memory like an array; the array's own on the processor."""
        return cls(ort_value(array, device), array if device == "cpu" else None)

    def read(self) -> np.ndarray:
        """It, or where it lies elsewhere a copy."""
        return self.value.numpy() if self.array is None else self.array

    def edit(self, change: Edit) -> None:
        """Let `change` write into it, as of the last token: [b, vocabulary]."""
        array = self.read()
        change(array[:, -1])
        if self.array is None:
            self.value.update_inplace(array)


class TopK:
    """The highest of a step's scores, logits or their log-probabilities, and the tokens that have them.

    Args:
        logits: float32 [b, 1, vocabulary], which the step fills anew.
        count: how many of each row.
        normal: session that makes log-probabilities; None to rank the logits.
        best: session that ranks.
        device: where both run.
    """

    def __init__(
        self,
        logits: DeviceBuffer,
        count: int,
        normal: ort.InferenceSession | None,
        best: ort.InferenceSession,
        device: str,
    ) -> None:
        rows, width, vocabulary = logits.value.shape()
        self._logits, self._scores, self._normal = logits, logits, None
        if normal is not None:
            self._scores = DeviceBuffer.of(np.empty((rows, width, vocabulary), np.float32), device)
            self._normal = BoundSession(normal, {"logits": logits.value}, {"log_probs": self._scores.value}, {}, device)
        self._highest = np.empty((rows, width, min(count, vocabulary)), np.float32)
        self._tokens = np.empty(self._highest.shape, np.int64)
        given = {"scores": self._scores.value, "count": ort_value(np.array([count]))}
        made = {"highest": ort_value(self._highest), "tokens": ort_value(self._tokens)}
        self._best = BoundSession(best, given, made, {}, device)

    def run(self, before: Edit | None, after: Edit | None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, tokens), falling, each [b, count].

        Args:
            before: changes the logits.
            after: changes what is ranked.
        """
        if before:
            self._logits.edit(before)
        if self._normal:
            self._normal.run()
        if after:
            self._scores.edit(after)
        self._best.run()
        return self._highest[:, -1].copy(), self._tokens[:, -1].copy()
