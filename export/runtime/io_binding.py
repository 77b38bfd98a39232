"""Sessions bound to fixed memory: the output of one graph is the input of the next, and no call allocates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from lora_ft.export.runtime.native_session import bind
from lora_ft.export.runtime.session import ort_value

Edit = Callable[[np.ndarray], None]  # changes scores [b, vocabulary] in place


class BoundSession:
    """A session bound to memory, so that calls with equal shapes neither bind nor allocate.

    Args:
        session: Session of the graph.
        fixed: Inputs that stay the same, by name.
        outputs: Memory for the outputs, by name.
        examples: Example array of each other input, by name, with the dtype and shape of all calls.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        fixed: Mapping[str, ort.OrtValue],
        outputs: Mapping[str, ort.OrtValue],
        examples: Mapping[str, np.ndarray],
        device: str,
    ) -> None:
        self._arrays = {name: np.array(array) for name, array in examples.items()}
        values = {name: ort_value(array) for name, array in self._arrays.items()}
        self._alive = {**fixed, **outputs, **values}
        binding = bind(session, {**fixed, **values}, outputs, copied=() if device == "cpu" else list(values))
        self._run, self._copies = binding.run, binding.copies

    def run(self, *inputs: np.ndarray | bool) -> None:
        """Run the graph on these inputs, in the order of `examples`."""
        for array, new in zip(self._arrays.values(), inputs, strict=True):
            array[...] = new
        for copy in self._copies:
            copy()
        self._run()


@dataclass(frozen=True)
class DeviceBuffer:
    """Memory that one graph writes and the next graph reads.

    Attributes:
        value: The memory.
        array: View of the memory, or None if it is on a GPU.
    """

    value: ort.OrtValue
    array: np.ndarray | None

    @classmethod
    def of(cls, array: np.ndarray, device: str) -> DeviceBuffer:
        """Return memory with the shape and dtype of `array`; on the processor it is the array's own memory."""
        return cls(ort_value(array, device), array if device == "cpu" else None)

    def read(self) -> np.ndarray:
        """Return the content: a view on the processor, a copy from a GPU."""
        return self.value.numpy() if self.array is None else self.array

    def edit(self, change: Edit) -> None:
        """Let `change` edit the scores of the last token [b, vocabulary] in place."""
        array = self.read()
        change(array[:, -1])
        if self.array is None:
            self.value.update_inplace(array)


class TopK:
    """The tokens of a step with the highest scores (logits or log-probabilities).

    Args:
        logits: Logits float32 [b, 1, vocabulary], which each step overwrites.
        count: Number of tokens per row.
        log_softmax: Session of the log-softmax; None to rank the logits.
        top_k: Session of the ranking.
        device: "cpu" or "cuda": the provider of both sessions.
    """

    def __init__(
        self,
        logits: DeviceBuffer,
        count: int,
        log_softmax: ort.InferenceSession | None,
        top_k: ort.InferenceSession,
        device: str,
    ) -> None:
        rows, width, vocabulary = logits.value.shape()
        self._logits, self._scores, self._log_softmax = logits, logits, None
        if log_softmax is not None:
            self._scores = DeviceBuffer.of(np.empty((rows, width, vocabulary), np.float32), device)
            self._log_softmax = BoundSession(
                log_softmax, {"logits": logits.value}, {"log_probs": self._scores.value}, {}, device
            )
        self._highest = np.empty((rows, width, min(count, vocabulary)), np.float32)
        self._tokens = np.empty(self._highest.shape, np.int64)
        inputs = {"scores": self._scores.value, "count": ort_value(np.array([count]))}
        outputs = {"highest": ort_value(self._highest), "tokens": ort_value(self._tokens)}
        self._top_k = BoundSession(top_k, inputs, outputs, {}, device)

    def run(self, before: Edit | None, after: Edit | None) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, tokens) in descending order, each [b, count].

        Args:
            before: Edits the logits.
            after: Edits the scores before they are ranked.
        """
        if before:
            self._logits.edit(before)
        if self._log_softmax:
            self._log_softmax.run()
        if after:
            self._scores.edit(after)
        self._top_k.run()
        return self._highest[:, -1].copy(), self._tokens[:, -1].copy()
