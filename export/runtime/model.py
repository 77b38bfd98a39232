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

_ROOM = 64  # tokens that a cache has room for at first
_MASK = "encoder_attention_mask"
_READ = ("next", "highest", "tokens")


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
    """A graph of the decoder bound to memory, so that nothing is bound or allocated between two calls of one kind.

    Args:
        session: of the graph.
        source: what it reads.
        fixed: names and values of the inputs that stay the same.
        cache: names and values of what it writes.
        given: tokens and lengths, of the shapes that all calls have.
        made: name and memory of what it puts out.
        device: where it runs.

    Attributes:
        source: as above.
        made: the memory as above, with what the last call put out.
    """

    def __init__(
        self, session: ort.InferenceSession, source: Source, fixed: Mapping[str, ort.OrtValue],
        cache: Mapping[str, ort.OrtValue], given: tuple[np.ndarray, np.ndarray], made: tuple[str, ort.OrtValue],
        device: str,
    ) -> None:  # fmt: skip
        self.source, (name, self.made), self._device = source, made, device
        # onnxruntime's own wrapper looks an option up first, by way of an exception: 50 µs
        self._run = session._sess.run_with_iobinding
        self._given = [np.array(array) for array in (*given, False)]
        self._values = [_value(array) for array in self._given]
        self._binding = session.io_binding()
        for key, value in fixed.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, value in {name: self.made, **cache}.items():
            self._binding.bind_ortvalue_output(key, value)
        self._bind_given()

    def run(self, tokens: np.ndarray, lengths: np.ndarray, early: bool) -> None:
        """Put tokens in after so many others of each row; `made` is then what is made of them."""
        for array, new in zip(self._given, (tokens, lengths, early), strict=True):
            array[...] = new
        if self._device != "cpu":
            self._bind_given()  # which copies them there
        self._run(self._binding._iobinding, _RUN)

    def _bind_given(self) -> None:
        for key, value in zip(("input_ids", "lengths", "early"), self._values, strict=True):
            self._binding.bind_ortvalue_input(key, value)


@dataclass
class Cache:
    """Self-attention keys and values of the tokens made so far, with room for more, which steps write there.

    Attributes:
        values: keys and values in the graphs' order, each [b, heads, room, d_kv].
        rows: how many.
        lengths: int64 [b], or [1] where all are alike: of how many tokens of each row there are keys and values.
        steps: those that are bound to these values, by graph, what they put out and the shapes of what they take.
    """

    values: list[ort.OrtValue]
    rows: int
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    steps: dict[tuple[str, str, int, int], Step] = field(default_factory=dict)

    def forget(self, counts: np.ndarray) -> None:
        """Take back the last tokens of each row [b]."""
        self.lengths = self.lengths - (counts[:1] if (counts == counts[0]).all() else counts)


class Model:
    """The graphs in a folder. A graph is loaded when it is first used: few callers need them all.

    Args:
        folder: of the bundle.
        shape: (decoder layers, heads, d_kv, vocabulary).
        threads: for one call.
        provider: "cpu", or "cuda", where keys and values stay in the GPU's memory.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], threads: int, provider: str = "cpu") -> None:
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

    def cache(self, rows: int) -> Cache:
        """The cache before the first token."""
        return Cache([self._room(rows, _ROOM) for _ in self._names], rows)

    def step(self, source: Source, cache: Cache, tokens: np.ndarray, *, early: bool = False) -> np.ndarray:
        """Put tokens through the decoder; the likeliest token after each of them, int64 [b, q].

        Args:
            source: rows of `cache` that stand together share one of its rows.
            cache: grows by q.
            tokens: int64 [b, q].
            early: </s> may not come yet.
        """
        return self._advance(source, cache, tokens, "next", early).numpy().copy()

    def logits(self, source: Source, cache: Cache, tokens: np.ndarray) -> np.ndarray:
        """As `step`, the logits float32 [b, q, vocabulary]."""
        return self._advance(source, cache, tokens, "logits").numpy().copy()

    def likeliest(
        self, source: Source, cache: Cache, tokens: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """As `step` for single tokens [b, 1]: (log-probabilities, tokens) of the likeliest, falling, [b, count]."""
        logits = self._advance(source, cache, tokens, "logits")
        (log_probs,) = self._run("normal", [logits], ["log_probs"])
        return self._best(log_probs, count)

    def log_probs(self, source: Source, cache: Cache, tokens: np.ndarray) -> np.ndarray:
        """As `step` for single tokens [b, 1]: log-probabilities of every next one float32 [b, vocabulary]."""
        (made,) = self._run("normal", [self._advance(source, cache, tokens, "logits")], ["log_probs"])
        return made.numpy()[:, -1]

    def best(self, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(the highest of some scores [b, vocabulary], falling, their tokens), each [b, count]."""
        return self._best(_value(scores[:, None]), count)

    def _best(self, scores: ort.OrtValue, count: int) -> tuple[np.ndarray, np.ndarray]:
        made = self._run("best", [scores, _value(np.array([count]))], ["highest", "tokens"])
        highest, tokens = (value.numpy()[:, -1] for value in made)
        return highest, tokens

    def _advance(
        self, source: Source, cache: Cache, tokens: np.ndarray, wanted: str, early: bool = False
    ) -> ort.OrtValue:  # fmt: skip
        """What is made of these tokens, in memory that the next call writes into."""
        count, lengths = tokens.shape[1], cache.lengths
        longest = int(lengths.max()) + count
        if longest > cache.values[0].shape()[2]:
            self._make_room(cache, longest)
        # the faster attention of `step` takes a bias on processors alone
        alone = self._provider == "cpu" and (count == 1 or cache.rows == 1 or longest == count)
        key = "step" if alone else "decoder", wanted, count, len(lengths)
        step = cache.steps.get(key)
        if step is None or step.source is not source:
            step = cache.steps[key] = self._bound(key[0], source, cache, tokens, wanted)
        step.run(tokens, lengths, early)
        cache.lengths = lengths + count
        return step.made

    def _bound(self, graph: str, source: Source, cache: Cache, tokens: np.ndarray, wanted: str) -> Step:
        made = np.empty(tokens.shape if wanted == "next" else (*tokens.shape, self._vocabulary),
                        np.int64 if wanted == "next" else np.float32)  # fmt: skip
        names = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        fixed = dict(zip(names, [*source.values, *cache.values], strict=True))
        presents = dict(zip(self._presents, cache.values, strict=True))
        memory = _value(made, "cpu" if wanted in _READ else self._provider)
        given = tokens, cache.lengths
        return Step(self._session(graph), source, fixed, presents, given, (wanted, memory), self._provider)

    def _make_room(self, cache: Cache, length: int) -> None:
        """Twice the room as often as it takes, so that copying stays a small part however long an answer is."""
        room: int = cache.values[0].shape()[2]
        while room < length:
            room *= 2
        for i, value in enumerate(cache.values):
            larger = np.zeros((cache.rows, self._heads, room, self._d_kv), np.float32)
            larger[:, :, : value.shape()[2]] = value.numpy()
            cache.values[i] = _value(larger, self._provider)
        cache.steps = {}

    def _room(self, rows: int, room: int) -> ort.OrtValue:
        return _value(np.zeros((rows, self._heads, room, self._d_kv), np.float32), self._provider)

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        """Those rows of the sources, int64 [n]."""
        mask, *cross = source.values
        return Source(len(rows), [_value(mask.numpy()[rows], self._provider), *self._selected(cross, rows)])

    def select_cache(self, cache: Cache, rows: np.ndarray) -> None:
        """Make the cache one of those of its rows, int64 [n]."""
        cache.values = self._selected(cache.values, rows)
        cache.rows, cache.steps = len(rows), {}
        if len(cache.lengths) > 1:
            cache.lengths = cache.lengths[rows]

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
            "decoder": ["input_ids", "lengths", "early", *state],
            "step": ["input_ids", "lengths", "early", *state],
            "normal": ["logits"],
            "best": ["scores", "count"],
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
