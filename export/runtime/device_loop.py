"""Greedy search whose steps follow each other on the device, for GPUs. It was not measured on a GPU, so it is off.

On a GPU, a step of a small model waits for the host: launching its kernels takes longer than running them, and reading
each token stops the GPU. So here the host only asks for another step. The graph `device_step` writes its next inputs
(latest tokens, lengths, keys and values) into the memory that it reads. The host looks at the tokens once in several
steps, to see whether all rows have ended. Steps of a row after its end are in vain, and their tokens are cut.

A step without arguments can be captured as a CUDA graph (`CapturedGraphs`), for fixed shapes and addresses. So calls
are rounded up to a `Bucket`, and its buffers are kept: spare rows repeat the first source, and sources are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import ragged
from lora_ft.export.runtime.bucket import Bucket
from lora_ft.export.runtime.captured_graphs import Call, CapturedGraphs
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.forks import begin_again_in_children
from lora_ft.export.runtime.graph_files import MASK, open_graph, prefixed
from lora_ft.export.runtime.manifest import DEVICE_STEP
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.session import ort_value

_ROOM = 256  # largest initial room, in tokens, since a step reads all of it
_BUCKETS = 64  # buckets that are kept
_STEP, _ENCODER = "device_step", "encoder"


class DeviceLoop:
    """Greedy search on the buffers of a device.

    Args:
        folder: Folder of the bundle.
        model: Graphs of the bundle.
        steps: Steps between two looks at the tokens.

    Attributes:
        steps: See above.

    Raises:
        UsageError: The bundle lacks the graph, or `steps` is out of range.
    """

    def __init__(self, folder: Path, model: Model, steps: int) -> None:
        if not (folder / DEVICE_STEP).is_file():
            raise UsageError(
                f"{folder} lacks {DEVICE_STEP}, which device_steps requires",
                "export the run again, in a precision for GPUs (fp32, fp16, bf16) and not as a bank",
            )
        self._folder, self._model, self.steps = folder, model, steps
        self._heads, self._d_kv = model.head_shape
        names = model.cache_names
        self._cross, self._present = prefixed("cross", names), prefixed("present", names)
        self._inputs = {
            _ENCODER: ["input_ids", "attention_mask"],
            _STEP: ["state", "least", MASK, *self._cross, *prefixed("past", names)],
        }
        self._begin()
        begin_again_in_children(self)
        self._window = self._thread.submit(self._try).result()
        if not 1 <= steps <= self._window:
            raise UsageError(f"device_steps is not in 1..{self._window} (got {steps})", "use 8, or 0 for none")

    def __str__(self) -> str:
        trouble = self._graphs.trouble
        return f"graphs, {self.steps} steps at once, {f'no CUDA graphs: {trouble}' if trouble else 'as CUDA graphs'}"

    def search(self, rows: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Iterator[TokenChunk]:
        """Yield the likeliest tokens of each source.

        Args:
            rows: Token ids of each source, int64 [s].
            options: Limits on the length of answers, which must be `plain`.
            special: Special tokens of the model.
        """
        for row, tokens in enumerate(self._thread.submit(self._search, rows, options, special).result()):
            yield TokenChunk(row, special.trim(tokens))

    def _search(self, rows: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> np.ndarray:
        """Return tokens [b, n]; those after the end of a row are arbitrary."""
        if len(self._bound) >= _BUCKETS:
            self._forget()
        bucket = Bucket.of(len(rows), min(options.max_new_tokens, _ROOM), max(map(len, rows)))
        self._encode(rows, bucket)
        step_on, step = self._step(bucket)
        state = np.full((bucket.rows, 1 + self._window), special.start)
        state[:, 0] = 0
        self._state(bucket).update_inplace(state)
        self._least.update_inplace(np.array([options.min_new_tokens]))
        ended, chunks, count = np.zeros(len(rows), bool), list[np.ndarray](), 0
        while count < options.max_new_tokens and not ended.all():
            turns = min(self.steps, options.max_new_tokens - count)
            if count + turns > bucket.room:
                bucket = self._grow(bucket)
                step_on, step = self._step(bucket)
            for _ in range(turns - 1):
                step_on()
            step()
            tokens = self._state(bucket).numpy()[: len(rows), -turns:].copy()
            chunks.append(tokens)
            ended |= special.ended(tokens).any(axis=1)
            count += turns
        return np.concatenate(chunks, axis=1)

    def _encode(self, rows: Sequence[np.ndarray], bucket: Bucket) -> None:
        """Encode sources into the bucket's buffers."""
        key, values = (bucket.rows, bucket.width), self._source(bucket)
        arrays = ragged([*rows, *[rows[0]] * (bucket.rows - len(rows))], 0)
        for value, array in zip(values[:2], arrays, strict=True):
            value.update_inplace(np.pad(array, ((0, 0), (0, bucket.width - array.shape[1]))))
        if key not in self._encoders:
            inputs, outputs = (
                dict(zip(*each, strict=True))
                for each in ((self._inputs[_ENCODER], values[:2]), (self._cross, values[2:]))
            )
            _, self._encoders[key] = self._graphs.call(_ENCODER, inputs, outputs)
        self._encoders[key]()

    def _step(self, bucket: Bucket) -> tuple[Call, Call]:
        """Return calls that take a step, without and with waiting for it. A first one changes the bucket's buffers."""
        if bucket not in self._bound:
            state, past, (_, *source) = self._state(bucket), self._cache(bucket), self._source(bucket)
            inputs = dict(zip(self._inputs[_STEP], [state, self._least, *source, *past], strict=True))
            outputs = {"next_state": state, **dict(zip(self._present, past, strict=True))}
            state.update_inplace(np.zeros(state.shape(), np.int64))  # lengths in a larger room are outside of this one
            self._bound[bucket] = self._graphs.call(_STEP, inputs, outputs)
        return self._bound[bucket]

    def _grow(self, bucket: Bucket) -> Bucket:
        """Return the bucket with twice the room, and copy the rows into it."""
        grown, state = bucket.grown(), self._state(bucket).numpy().copy()
        self._step(grown)  # now, since the first call changes its buffers
        self._state(grown).update_inplace(state)
        for old, new in zip(self._cache(bucket), self._cache(grown), strict=True):
            larger = np.zeros(new.shape(), np.float32)
            larger[:, :, : bucket.room] = old.numpy()
            new.update_inplace(larger)
        return grown

    def _source(self, bucket: Bucket) -> list[ort.OrtValue]:
        """Return the buffers of the tokens, the mask, and the cross-attention keys and values."""
        tokens, heads = (bucket.rows, bucket.width), (bucket.rows, self._heads, bucket.width, self._d_kv)
        return self._buffers("source", [(tokens, np.int64)] * 2 + [(heads, np.float32)] * len(self._cross))

    def _cache(self, bucket: Bucket) -> list[ort.OrtValue]:
        """Return the buffers of the self-attention keys and values."""
        shape = bucket.rows, self._heads, bucket.room, self._d_kv
        return self._buffers("cache", [(shape, np.float32)] * len(self._cross))

    def _state(self, bucket: Bucket) -> ort.OrtValue:
        """Return the buffer of the rows' lengths and latest tokens."""
        return self._buffers("state", [((bucket.rows, 1 + self._window), np.int64)])[0]

    def _buffers(self, name: str, sizes: Sequence[tuple[tuple[int, ...], type]]) -> list[ort.OrtValue]:
        """Return buffers of these shapes and types, which all buckets with these sizes share."""
        key = name, sizes[-1][0]
        if key not in self._values:
            self._values[key] = [ort_value(np.zeros(*size), self._model.provider) for size in sizes]
        return self._values[key]

    def _try(self) -> int:
        """Take a step, so that it is known whether it can be captured, and return how many tokens the state keeps."""
        self._window = self._graphs.session(_STEP).get_inputs()[0].shape[1] - 1
        bucket = Bucket.of(1, 1, 1)
        self._encode([np.zeros(1, np.int64)], bucket)  # without a source, keys and values could become NaN, and stay so
        self._step(bucket)
        return self._window

    def _begin(self) -> None:
        """Begin with a thread of its own, since a CUDA graph belongs to the thread that captured it."""
        self._thread = ThreadPoolExecutor(1, "device-loop")
        self._forget()

    def _forget(self) -> None:
        """Begin without sessions and buffers, which frees the CUDA graphs."""
        opened = partial(_open, self._folder, self._model, self._inputs)
        self._graphs = CapturedGraphs(self._model.provider, opened)
        self._least = ort_value(np.zeros(1, np.int64), self._model.provider)
        self._values: dict[tuple[str, tuple[int, ...]], list[ort.OrtValue]] = {}
        self._encoders: dict[tuple[int, int], Call] = {}
        self._bound: dict[Bucket, tuple[Call, Call]] = {}

    def begin_again(self) -> None:
        """Begin again in a forked child, which lacks the threads."""
        self._graphs.keep_alive()
        self._begin()


def _open(
    folder: Path, model: Model, inputs: Mapping[str, Sequence[str]], graph: str, captured: bool
) -> ort.InferenceSession:
    path, sizes = folder / f"{graph}.onnx", (*model.head_shape, 0)  # neither graph has logits
    return open_graph(path, model.threads, model.provider, inputs[graph], model.cache_names, sizes, captured)
