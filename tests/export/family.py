"""Small models of all T5 variants, and their graphs in ONNX Runtime as functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import transformers
from safetensors.numpy import load_file, save_file

from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.layouts.single import greedy_feed
from lora_ft.export.onnx.graphs import decoder_model, encoder_model, single_model
from lora_ft.export.onnx.model_parts import Calls, ModelParts, Weights
from lora_ft.export.onnx.quantization import formats_of
from lora_ft.export.precision import FP32, Precision
from lora_ft.export.runtime.session import open_session
from tests.export.oracle import END, PAD, redraw
from tests.tiny import CONFIG, save_tiny_t5

Arrays = dict[str, np.ndarray]

# transformers 5 takes no two sizes of stack in `generate`, ties and scales umt5 always, and never scales mt5.
CONFIGS: dict[str, dict[str, Any]] = {
    "t5 1.1 and flan": {},
    "t5 1.0": {
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "byt5": {"num_layers": 3, "num_decoder_layers": 1, "vocab_size": 96, "d_ff": 56},
    "mt5": {"model_type": "mt5", "num_heads": 2, "d_kv": 16, "d_model": 20},
    "tied mt5": {
        "model_type": "mt5",
        "tie_word_embeddings": True,
        "transformers_version": transformers.__version__,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 15,
    },
    "umt5": {"model_type": "umt5", "tie_word_embeddings": True, "num_layers": 3, "num_decoder_layers": 3},
    "tied gated-gelu": {
        "tie_word_embeddings": True,
        "num_heads": 5,
        "d_kv": 8,
        "d_model": 24,
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 40,
    },
    "untied relu": {
        "feed_forward_proj": "relu",
        "num_layers": 1,
        "num_decoder_layers": 1,
        "relative_attention_num_buckets": 4,
        "relative_attention_max_distance": 6,
    },
    "gated-silu": {"feed_forward_proj": "gated-silu", "num_layers": 4, "num_decoder_layers": 4, "num_heads": 1},
    "gated-relu": {"feed_forward_proj": "gated-relu", "layer_norm_epsilon": 1e-3},
}


def save_member(folder: Path, name: str, seed: int = 3, end: float = 1.0) -> Path:
    """Write the checkpoint of one of CONFIGS, with weights from `redraw`.

    The embedding of a tied head is scaled down. Otherwise every token would predict itself.
    """
    redraw(save_tiny_t5(folder, **CONFIGS[name]), seed, end)
    path = folder / "model.safetensors"
    weights = load_file(path)
    if "lm_head.weight" not in weights:
        weights["shared.weight"] *= 0.2
        weights["shared.weight"][END] *= end
        save_file(weights, path, metadata={"format": "pt"})
    return folder


def inputs(b: int, s: int, t: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sources, mask, decoder inputs). Rows have different lengths, and the first has no padding."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(s) < rng.integers(1, s + 1, b)[:, None]).astype(np.int64)
    mask[0] = 1
    decoder_ids = rng.integers(2, CONFIG["vocab_size"], (b, t))
    decoder_ids[:, 0] = PAD
    return np.where(mask, rng.integers(2, CONFIG["vocab_size"], (b, s)), PAD), mask, decoder_ids


def assert_close(a: np.ndarray, b: np.ndarray, tolerance: float = 3e-4) -> None:
    """Compare logits. They reach 60, and processors add in different orders."""
    assert a.shape == b.shape
    assert np.abs(a - b).max() < tolerance


class Graphs:
    """The graphs of a model, each built on first use.

    Args:
        architecture, weights: The model.
        precision: Precision of the weights.
    """

    def __init__(self, architecture: Architecture, weights: Weights, precision: Precision = FP32) -> None:
        self.architecture = architecture
        family = architecture.family
        self.parts = family.graph_parts(architecture, weights, formats_of(precision, family))
        self._names = [f"{i}.{kind}" for i in range(architecture.decoder_layers) for kind in ("key", "value")]

    @classmethod
    def of(cls, folder: Path, precision: Precision = FP32) -> Graphs:
        return cls(*read_model(folder), precision)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Arrays:
        """Return the decoder inputs that stay the same in all steps."""
        names = [f"cross.{name}" for name in self._names]
        cross = self._encoder.run(names, {"input_ids": ids, "attention_mask": mask})
        return dict(zip(names, cross, strict=True), encoder_attention_mask=mask)

    def room(self, rows: int, length: int, full_of: float = 50) -> Arrays:
        """Return a cache with capacity for `length` tokens, filled with values that must not affect logits."""
        a = self.architecture
        return {f"past.{name}": np.full((rows, a.heads, length, a.d_kv), full_of, np.float32) for name in self._names}

    def call(
        self,
        fixed: Arrays,
        cache: Arrays,
        lengths: int | Sequence[int],
        ids: np.ndarray,
        *,
        forbid_eos: bool = False,
        calls: Calls = "any",
    ) -> tuple[np.ndarray, np.ndarray, Arrays]:
        """Return (logits, best tokens, cache) of one call after `lengths` tokens."""
        feed = {"input_ids": ids, "lengths": np.atleast_1d(lengths), "forbid_eos": np.array(forbid_eos)}
        outputs = ["logits", "next", *self._prefixed("present")]
        logits, best, *presents = self._decoders[calls].run(outputs, fixed | cache | feed)
        return logits, best, dict(zip(self._prefixed("past"), presents, strict=True))

    def decode(
        self, fixed: Arrays, decoder_ids: np.ndarray, chunks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, Arrays]:
        """Return (logits, best tokens, cache) of all positions, in calls of `chunks` tokens."""
        cache = self.room(*decoder_ids.shape)
        logits, best, end = [], [], 0
        for length in chunks:
            start, end = end, end + length
            some, tokens, cache = self.call(fixed, cache, start, decoder_ids[:, start:end])
            logits.append(some)
            best.append(tokens)
        return np.concatenate(logits, axis=1), np.concatenate(best, axis=1), cache

    def forced(self, ids: np.ndarray, mask: np.ndarray, decoder_ids: np.ndarray) -> np.ndarray:
        """Return the logits of all positions from one call."""
        return self.decode(self.encode(ids, mask), decoder_ids, [decoder_ids.shape[1]])[0]

    def greedy(self, ids: np.ndarray, mask: np.ndarray, limit: int, least: int = 0) -> np.ndarray:
        """Return the greedy tokens from the encoder and the step graph."""
        fixed, cache = self.encode(ids, mask), self.room(len(ids), limit, np.nan)
        token, ended, columns = np.full((len(ids), 1), PAD), np.zeros((len(ids), 1), bool), list[np.ndarray]()
        while len(columns) < limit and not ended.all():
            _, best, cache = self.call(fixed, cache, len(columns), token, forbid_eos=len(columns) < least, calls="step")
            token = np.where(ended, PAD, best)
            ended = ended | (token == END)
            columns.append(token)
        return np.concatenate(columns, axis=1)

    def single(self, ids: np.ndarray, mask: np.ndarray, limit: int, least: int = 0) -> np.ndarray:
        """Return the greedy tokens from the single graph."""
        return self._single.run(None, greedy_feed(ids, mask, least, limit))[0]

    def _prefixed(self, prefix: str) -> list[str]:
        return [f"{prefix}.{name}" for name in self._names]

    @cached_property
    def _encoder(self) -> ort.InferenceSession:
        return self._open(encoder_model)

    @cached_property
    def _decoders(self) -> dict[Calls, ort.InferenceSession]:
        return {calls: self._open(partial(decoder_model, calls=calls)) for calls in get_args(Calls)}

    @cached_property
    def _single(self) -> ort.InferenceSession:
        return self._open(single_model)

    def _open(self, build: Callable[[ModelParts], onnx.ModelProto]) -> ort.InferenceSession:
        return open_session(build(self.parts).SerializeToString(), threads=1)
