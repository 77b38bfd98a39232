"""mobius-onnx, Microsoft's graphs of T5 on ONNX Runtime, with a greedy loop over bound outputs.

Its encoder and its attention over the source ignore the mask, so only rows of equal length are computed together. Each
step computes the keys and values of the source again, and returns the cache of the next step in new memory. The logits
of mobius-onnx 0.1.0 are those of PyTorch for the first token alone, so its answers are wrong, which the benchmark says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def convert(checkpoint: Path, prepared: Path, precision: str) -> None:
    """Write `encoder` and `decoder` with the operators that mobius-onnx chooses for processors."""
    from mobius import build

    build(str(checkpoint), dtype="f32", execution_provider="cpu").save(str(prepared))
    shutil.copyfile(checkpoint / "config.json", prepared / "config.json")


class Mobius:
    """Greedy search over two sessions."""

    def __init__(self, prepared: Path, threads: int) -> None:
        config = json.loads((prepared / "config.json").read_text(encoding="utf-8"))
        self._start, self._end = config["decoder_start_token_id"], config["eos_token_id"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # each step would warn of the shapes that the graph promises
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(prepared / name / "model.onnx", options) for name in ("encoder", "decoder")
        )
        self._inputs = {value.name: value for value in self._decoder.get_inputs()}
        self._kept = [value.name for value in self._decoder.get_outputs() if ".cross." not in value.name]
        self._width = [config["num_heads"], config["d_kv"]]

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the encoder's states [b, s, d] of rows of equal length."""
        names = [value.name for value in self._encoder.get_inputs()]
        states = self._encoder.run(None, {name: {"input_ids": ids, "attention_mask": mask}[name] for name in names})
        return np.asarray(states[0])

    def generate(self, ids: np.ndarray, mask: np.ndarray, new: int, least: int, decoding: str, room: int) -> np.ndarray:
        """Return tokens [b, n <= new], padded with -1."""
        answers, lengths = np.full((len(ids), new), -1, np.int64), mask.sum(axis=1)
        for length in np.unique(lengths):
            rows = lengths == length
            answers[rows] = self._greedy(ids[rows, :length], new, least)
        return answers

    def _greedy(self, ids: np.ndarray, new: int, least: int) -> np.ndarray:
        rows, (heads, width) = len(ids), self._width
        states = onnxruntime.OrtValue.ortvalue_from_numpy(self.encode(ids, np.ones_like(ids)))
        nothing = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, 0, width), np.float32))
        cache: dict[str, Any] = {name: nothing for name in self._inputs if name.startswith("past_key_values.")}
        tokens = np.full(rows, self._start, np.int64)
        answers, running = np.full((rows, new), -1, np.int64), np.ones(rows, bool)
        for position in range(new):
            binding = self._decoder.io_binding()
            values = cache | {"encoder_hidden_states": states}
            for name in self._inputs.keys() & values.keys():
                binding.bind_ortvalue_input(name, values[name])
            if "attention_mask" in self._inputs:
                binding.bind_cpu_input("attention_mask", np.ones((rows, position + 1), np.int64))
            binding.bind_cpu_input("input_ids", tokens[:, None])
            for name in self._kept:
                binding.bind_output(name, "cpu")
            self._decoder.run_with_iobinding(binding)
            outputs = dict(zip(self._kept, binding.get_outputs(), strict=True))
            logits = outputs.pop("logits").numpy()[:, -1]
            cache |= {name.replace("present.", "past_key_values."): value for name, value in outputs.items()}
            if position < least:
                logits[:, self._end] = -np.inf
            tokens = logits.argmax(axis=1)
            answers[running, position] = tokens[running]
            running &= tokens != self._end
            if not running.any():
                break
        return answers


def load(prepared: Path, precision: str, threads: int, provider: str) -> Mobius:
    """Return the engine."""
    return Mobius(prepared, threads)
