"""The graphs of a bundle behind arrays: encode sources, take decoder steps, keep the cache inside ONNX Runtime.

A step's values are handed over as one vector in a fixed order, without a dictionary or a copy: between two steps of
FLAN-T5-small at 4 bits there is 1 ms, of which Python may take a twentieth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from export.errors import LoraFtError
from export.runtime.session import open_session

HOLE = 1 << 40  # the position of a key that no query may see
_MASK = "encoder_attention_mask"


@dataclass(frozen=True)
class Source:
    """Encoded sources: their mask, and the cross-attention keys and values of every layer.

    Attributes:
        rows: how many.
        values: the mask, then keys and values in the graphs' order.
    """

    rows: int
    values: list[ort.OrtValue]


@dataclass
class Cache:
    """Self-attention keys and values of the tokens made so far.

    Attributes:
        values: keys and values in the graphs' order, each [b, heads, p, d_kv].
        positions: int64 [b, p], of the keys; HOLE where a key is not to be seen.
    """

    values: list[ort.OrtValue]
    positions: np.ndarray


class Model:
    """The graphs in a folder. A graph is loaded when it is first used: greedy search needs no step decoder.

    Args:
        folder: of the bundle.
        shape: (decoder layers, heads, d_kv).
        threads: for one call.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], threads: int) -> None:
        layers, self._heads, self._d_kv = shape
        self._folder, self._threads = folder, threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
        self._device = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)

    def open_all(self) -> None:
        """Load every graph now.

        Raises:
            LoraFtError: a graph takes other inputs than it should.
        """
        for name in self._inputs:
            self._session(name)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Source:
        """Encode sources [b, s], int64."""
        held = _value(mask)
        values = self._run("encoder", [_value(ids), held], self._prefixed("cross"))
        return Source(len(ids), [held, *values])

    def empty(self, rows: int) -> Cache:
        """The cache before the first token."""
        nothing = _value(np.zeros((rows, self._heads, 0, self._d_kv), np.float32))
        return Cache([nothing] * len(self._names), np.empty((rows, 0), np.int64))

    def step(
        self, source: Source, cache: Cache, tokens: np.ndarray, positions: np.ndarray, keys: np.ndarray | None = None
    ) -> np.ndarray:
        """Put tokens through the decoder; the likeliest token after each of them, int64 [b, q].

        Args:
            source: rows of `cache` that stand together share one of its rows.
            cache: grows by q.
            tokens, positions: int64 [b, q].
            keys: positions under which the tokens are seen later, HOLE for never; by default `positions`.
        """
        return self._advance(source, cache, tokens, positions, keys, "next").numpy()

    def logits(self, source: Source, cache: Cache, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """As `step`, the logits float32 [b, q, vocabulary]."""
        return self._advance(source, cache, tokens, positions, None, "logits").numpy()

    def likeliest(
        self, source: Source, cache: Cache, tokens: np.ndarray, positions: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `step` for single tokens [b, 1]: (log-probabilities, tokens) of the likeliest, falling, [b, count]."""
        logits = self._advance(source, cache, tokens, positions, None, "logits")
        made = self._run("rank", [logits, _value(np.array([count]))], ["log_probs", "tokens"])
        log_probs, best = (value.numpy()[:, -1] for value in made)
        return log_probs, best

    def _advance(
        self, source: Source, cache: Cache, tokens: np.ndarray, positions: np.ndarray, keys: np.ndarray | None,
        wanted: str,
    ) -> ort.OrtValue:  # fmt: skip
        cache.positions = np.concatenate([cache.positions, positions if keys is None else keys], axis=1)
        feeds = [_value(tokens), _value(positions), _value(cache.positions), *source.values, *cache.values]
        first, *cache.values = self._run("decoder", feeds, [wanted, *self._presents])
        return first

    def greedy(self, source: Source, cache: Cache, tokens: np.ndarray, least: int, most: int) -> np.ndarray:
        """Up to `most` greedy tokens [b, n] after `tokens` [b, 1] in one call, padded after </s>, none before `least`.

        The cache grows by n; it must have no holes.
        """
        feeds = [_value(tokens), *source.values, *cache.values, _value(np.array(least)), _value(np.array(most))]
        made, *cache.values = self._run("greedy", feeds, ["sequences", *self._presents])
        sequences = made.numpy()
        begin = cache.positions.shape[1]
        added = np.arange(begin, begin + sequences.shape[1])
        cache.positions = np.concatenate([cache.positions, np.broadcast_to(added, sequences.shape)], axis=1)
        return sequences

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        """Those rows of the sources, int64 [n]."""
        mask, *cross = source.values
        return Source(len(rows), [_value(mask.numpy()[rows]), *self._selected(cross, rows)])

    def select_cache(self, cache: Cache, rows: np.ndarray) -> None:
        """Make the cache one of those of its rows, int64 [n]."""
        cache.values, cache.positions = self._selected(cache.values, rows), cache.positions[rows]

    def _selected(self, values: list[ort.OrtValue], rows: np.ndarray) -> list[ort.OrtValue]:
        return self._run("select", [_value(rows), *values], self._prefixed("selected"))

    def _run(self, graph: str, values: Sequence[ort.OrtValue], wanted: list[str]) -> list[ort.OrtValue]:
        feeds, fetched = native.OrtValueVector(), native.OrtValueVector()
        for value in values:
            feeds.push_back(value._ortvalue)
        devices = [self._device] * len(wanted)
        self._session(graph).run_with_ortvaluevector(_RUN, self._inputs[graph], feeds, wanted, fetched, devices)
        return [ort.OrtValue(value) for value in fetched]

    def _prefixed(self, prefix: str) -> list[str]:
        return [f"{prefix}.{name}" for name in self._names]

    @cached_property
    def _presents(self) -> list[str]:
        return self._prefixed("present")

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """What each graph takes, in the order in which it is given."""
        limits = ["min_new_tokens", "max_new_tokens"]
        state = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        return {
            "encoder": ["input_ids", "attention_mask"],
            "decoder": ["input_ids", "positions", "key_positions", *state],
            "greedy": ["input_ids", *state, *limits],
            "rank": ["logits", "count"],
            "select": ["rows", *self._names],
        }

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            self._sessions[name] = self._open(name)
        return self._sessions[name]

    def _open(self, name: str) -> ort.InferenceSession:
        path = self._folder / f"{name}.onnx"
        session = open_session(path, self._threads)
        found = {entry.name for entry in session.get_inputs()}
        if found != set(self._inputs[name]):
            raise LoraFtError(
                f"{path} takes {', '.join(sorted(found ^ set(self._inputs[name])))} against what its config.json says",
                "export the bundle again",
            )
        return session


_RUN = ort.RunOptions()


def _value(array: np.ndarray) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))  # which keeps the array alive
