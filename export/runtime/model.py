"""The graphs of a bundle behind arrays: encode sources, take decoder steps, keep the cache inside ONNX Runtime.

Where steps follow each other, their values are bound to the graph once (`Step`); other calls hand theirs over as one
vector in a fixed order. Either way there is no dictionary and no copy: of a step of 1 to 4 ms, Python may take a
twentieth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from export.errors import LoraFtError
from export.runtime.session import open_session

HOLE = 1 << 40  # the position of a key that no query may see
_ROOM = 64  # tokens that a cache has room for at first
_MASK = "encoder_attention_mask"
_READ = ("next", "log_probs", "tokens")


@dataclass(frozen=True)
class Source:
    """Encoded sources: their mask, and the cross-attention keys and values of every layer.

    Attributes:
        rows: how many.
        values: the mask, then keys and values in the graphs' order.
    """

    rows: int
    values: list[ort.OrtValue]


class Step:
    """The step graph bound to memory, so that nothing is bound or allocated between two tokens.

    Args:
        session: of the graph.
        source: what it reads.
        fixed: names and values of the inputs that stay the same.
        cache: names and values of what it writes.
        shape: of the tokens.
        made: name and memory of what it puts out.

    Attributes:
        source: as above.
        array, value: what the last run put out, in two forms.
    """

    def __init__(
        self, session: ort.InferenceSession, source: Source, fixed: Mapping[str, ort.OrtValue],
        cache: Mapping[str, ort.OrtValue], shape: tuple[int, ...], made: tuple[str, np.ndarray],
    ) -> None:  # fmt: skip
        self.source, self._session, (name, self.array) = source, session, made
        self._tokens, self._length, self._early = np.zeros(shape, np.int64), np.zeros((), np.int64), np.zeros((), bool)
        self.value = _value(self.array)
        self._held = [_value(array) for array in (self._tokens, self._length, self._early)]
        self._binding = session.io_binding()
        inputs = dict(zip(("input_ids", "length", "early"), self._held, strict=True))
        for key, value in {**inputs, **fixed}.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, value in {name: self.value, **cache}.items():
            self._binding.bind_ortvalue_output(key, value)

    def run(self, tokens: np.ndarray, length: int, early: bool) -> None:
        """Put tokens in after so many others; `array` and `value` then hold what is made of them."""
        self._tokens[:], self._length[...], self._early[...] = tokens, length, early
        self._session.run_with_iobinding(self._binding, _RUN)


@dataclass
class Cache:
    """Self-attention keys and values of the tokens made so far, with room for more, which steps write there.

    Attributes:
        values: keys and values in the graphs' order, each [b, heads, room, d_kv].
        rows, length: how many rows, and how many tokens of each.
        steps: by what they put out for how many tokens a row, those that are bound to these values.
    """

    values: list[ort.OrtValue]
    rows: int
    length: int = 0
    steps: dict[tuple[str, int], Step] = field(default_factory=dict)

    def forget(self, counts: np.ndarray) -> None:
        """Take back the last tokens of each row [b], as many of all."""
        assert (counts == counts[0]).all()
        self.length -= int(counts[0])


@dataclass
class RaggedCache:
    """As `Cache`, each row at a length of its own. It is copied as it grows; what was taken back stays as a hole.

    Attributes:
        values: keys and values in the graphs' order, each [b, heads, p, d_kv].
        positions: int64 [b, p], of the keys; HOLE where a key is not to be seen.
        lengths: int64 [b], of each row.
    """

    values: list[ort.OrtValue]
    positions: np.ndarray
    lengths: np.ndarray

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.lengths)

    def forget(self, counts: np.ndarray) -> None:
        """Take back the last tokens of each row [b], at most as many as the last call put in."""
        width = self.positions.shape[1]
        self.positions[np.arange(width) >= width - counts[:, None]] = HOLE
        self.lengths = self.lengths - counts


class Model:
    """The graphs in a folder. A graph is loaded when it is first used: few callers need them all.

    Args:
        folder: of the bundle.
        shape: (decoder layers, heads, d_kv, vocabulary).
        threads: for one call.
        provider: "cpu", or "cuda", where keys and values stay in the GPU's memory.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int, int], threads: int, provider: str = "cpu"
    ) -> None:  # fmt: skip
        layers, self._heads, self._d_kv, self._vocabulary = shape
        self._folder, self._threads, self._provider = folder, threads, provider
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
        self._here = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)
        kind = getattr(native.OrtDevice, provider)()
        self._there = native.OrtDevice(kind, native.OrtDevice.default_memory(), 0)

    def open_all(self) -> None:
        """Load every graph now.

        Raises:
            LoraFtError: a graph takes other inputs than it should.
        """
        for name in self._inputs:
            self._session(name)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> Source:
        """Encode sources [b, s], int64."""
        held = _value(mask, self._provider)
        values = self._run("encoder", [_value(ids), held], self._prefixed("cross"))
        return Source(len(ids), [held, *values])

    def cache(self, rows: int) -> Cache | RaggedCache:
        """The cache before the first token, of the kind that is the fastest here.

        Attention in place, with a bias, is for processors alone (onnxruntime's GroupQueryAttention on CUDA has none).
        """
        if self._provider != "cpu":
            return self.ragged_cache(rows)
        return Cache([self._room(rows, _ROOM) for _ in self._names], rows)

    def ragged_cache(self, rows: int) -> RaggedCache:
        """The same, for rows that go on by unlike numbers of tokens."""
        return RaggedCache([self._room(rows, 0) for _ in self._names], np.empty((rows, 0), np.int64),
                           np.zeros(rows, np.int64))  # fmt: skip

    def step(
        self, source: Source, cache: Cache | RaggedCache, tokens: np.ndarray, *, early: bool = False
    ) -> np.ndarray:
        """Put tokens through the decoder; the likeliest token after each of them, int64 [b, q].

        Args:
            source: rows of `cache` that stand together share one of its rows.
            cache: grows by q.
            tokens: int64 [b, q]; for a `Cache` of several rows that holds tokens already, q is 1.
            early: </s> may not come yet.
        """
        return self._advance(source, cache, tokens, "next", early)

    def logits(self, source: Source, cache: Cache | RaggedCache, tokens: np.ndarray) -> np.ndarray:
        """As `step`, the logits float32 [b, q, vocabulary]."""
        return self._advance(source, cache, tokens, "logits")

    def likeliest(
        self, source: Source, cache: Cache | RaggedCache, tokens: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `step` for single tokens [b, 1]: (log-probabilities, tokens) of the likeliest, falling, [b, count]."""
        if isinstance(cache, Cache):
            logits = self._write(source, cache, tokens, "logits").value
        else:
            logits = self._append(source, cache, tokens, "logits")
        made = self._run("rank", [logits, _value(np.array([count]))], ["log_probs", "tokens"])
        log_probs, best = (value.numpy()[:, -1] for value in made)
        return log_probs, best

    def _advance(
        self, source: Source, cache: Cache | RaggedCache, tokens: np.ndarray, wanted: str, early: bool = False
    ) -> np.ndarray:
        if isinstance(cache, Cache):
            return self._write(source, cache, tokens, wanted, early).array.copy()
        return self._append(source, cache, tokens, wanted, early).numpy()

    def _append(
        self, source: Source, cache: RaggedCache, tokens: np.ndarray, wanted: str, early: bool = False
    ) -> ort.OrtValue:
        """What is made of these tokens, where the provider keeps it."""
        positions = cache.lengths[:, None] + np.arange(tokens.shape[1])
        cache.positions = np.concatenate([cache.positions, positions], axis=1)
        cache.lengths = cache.lengths + tokens.shape[1]
        state = (_value(array) for array in (tokens, positions, cache.positions, np.array(early)))
        feeds = [*state, *source.values, *cache.values]
        first, *cache.values = self._run("decoder", feeds, [wanted, *self._presents])
        return first

    def _write(self, source: Source, cache: Cache, tokens: np.ndarray, wanted: str, early: bool = False) -> Step:
        """The step that has put these tokens into the cache."""
        length, key = cache.length + tokens.shape[1], (wanted, tokens.shape[1])
        if length > cache.values[0].shape()[2]:
            self._make_room(cache, length)
        if key not in cache.steps or cache.steps[key].source is not source:
            cache.steps[key] = self._bound(source, cache, tokens.shape, wanted)
        cache.steps[key].run(tokens, cache.length, early)
        cache.length = length
        return cache.steps[key]

    def _bound(self, source: Source, cache: Cache, shape: tuple[int, ...], wanted: str) -> Step:
        made = np.empty(shape, np.int64) if wanted == "next" else np.empty((*shape, self._vocabulary), np.float32)
        names = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        fixed = dict(zip(names, [*source.values, *cache.values], strict=True))
        presents = dict(zip(self._presents, cache.values, strict=True))
        return Step(self._session("step"), source, fixed, presents, shape, (wanted, made))

    def _make_room(self, cache: Cache, length: int) -> None:
        """Twice the room as often as it takes, so that copying stays a small part however long an answer is."""
        room: int = cache.values[0].shape()[2]
        while room < length:
            room *= 2
        for i, value in enumerate(cache.values):
            cache.values[i] = self._room(cache.rows, room)
            cache.values[i].numpy()[:, :, : cache.length] = value.numpy()[:, :, : cache.length]
        cache.steps = {}

    def _room(self, rows: int, room: int) -> ort.OrtValue:
        return _value(np.zeros((rows, self._heads, room, self._d_kv), np.float32))

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        """Those rows of the sources, int64 [n]."""
        mask, *cross = source.values
        return Source(len(rows), [_value(mask.numpy()[rows], self._provider), *self._selected(cross, rows)])

    def select_cache(self, cache: Cache | RaggedCache, rows: np.ndarray) -> None:
        """Make the cache one of those of its rows, int64 [n]."""
        cache.values = self._selected(cache.values, rows)
        if isinstance(cache, Cache):
            cache.rows, cache.steps = len(rows), {}
        else:
            cache.positions, cache.lengths = cache.positions[rows], cache.lengths[rows]

    def _selected(self, values: list[ort.OrtValue], rows: np.ndarray) -> list[ort.OrtValue]:
        return self._run("select", [_value(rows), *values], self._prefixed("selected"))

    def _run(self, graph: str, values: Sequence[ort.OrtValue], wanted: list[str]) -> list[ort.OrtValue]:
        feeds, fetched = native.OrtValueVector(), native.OrtValueVector()
        for value in values:
            feeds.push_back(value._ortvalue)
        # what Python reads next comes back; all else stays where it is made
        devices = [self._here if name in _READ else self._there for name in wanted]
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
        state = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        return {
            "encoder": ["input_ids", "attention_mask"],
            "step": ["input_ids", "length", "early", *state],
            "decoder": ["input_ids", "positions", "key_positions", "early", *state],
            "rank": ["logits", "count"],
            "select": ["rows", *self._names],
        }

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            self._sessions[name] = self._open(name)
        return self._sessions[name]

    def _open(self, name: str) -> ort.InferenceSession:
        path = self._folder / f"{name}.onnx"
        session = open_session(path, self._threads, self._provider)
        found = {entry.name for entry in session.get_inputs()}
        if found != set(self._inputs[name]):
            raise LoraFtError(
                f"{path} takes {', '.join(sorted(found ^ set(self._inputs[name])))} against what its config.json says",
                "export the bundle again",
            )
        return session


_RUN = ort.RunOptions()


def _value(array: np.ndarray, device: str = "cpu") -> ort.OrtValue:
    """Of an array, on the processor in the array's own memory, which it keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device)
