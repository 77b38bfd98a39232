"""The graphs of a bundle as functions of arrays: encode sources, take decoder steps, hold the key-value cache.

The cache never leaves ONNX Runtime. It is allocated with spare room, and each step writes its keys and values into that
room, so a step copies nothing; room doubles when it is used up. Consecutive steps have equal shapes, so their inputs
and outputs are bound to a graph once (`BoundSession`), and a step is a single call. Other graphs get their inputs as
one vector in a fixed order. There are no dictionaries on the way: a step takes 1 to 4 ms, and Python may use a
twentieth of it.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime.bank import Chosen
from lora_ft.export.runtime.io_binding import BoundSession, DeviceBuffer, Edit, TopK
from lora_ft.export.runtime.manifest import ADAPTED
from lora_ft.export.runtime.native_session import RUN, SHRINK_ARENA, keep_alive, run_positional
from lora_ft.export.runtime.session import open_session, ort_value

_ROOM = 64  # initial capacity of a cache, in tokens
_LARGE = 2**26  # bytes worth returning to the system; allocating them again costs 1 ms per 10 MB
_MASK = "encoder_attention_mask"


@dataclass(frozen=True)
class Source:
    """Encoded sources: their mask, and the cross-attention keys and values of every layer.

    Attributes:
        rows: Number of sources.
        values: The mask, then keys and values in the graphs' order.
        adapters: Adapters of the rows, or None if no row has one.
    """

    rows: int
    values: list[ort.OrtValue]
    adapters: Chosen | None = None


@dataclass
class Cache:
    """Self-attention keys and values of the tokens so far, with spare room that later steps write into.

    Attributes:
        values: Keys and values in the graphs' order, each [b, heads, room, d_kv].
        rows: Number of rows.
        room: Capacity, in tokens.
        lengths: Number of tokens in each row, int64 [b], or [1] if all are equal.
        source: Sources that the bound steps read.
        steps: Steps bound to `values`, by graph, output and shapes.
        spare: A second set of values and steps, to reorder rows into.
        sessions: Sessions that steps are bound to; a forked child has others.
    """

    values: list[ort.OrtValue]
    rows: int
    room: int
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    source: Source | None = None
    steps: dict[tuple[str, str, int, int], _Step] = field(default_factory=dict)
    spare: _Spare | None = None
    sessions: object = None

    def forget(self, counts: np.ndarray) -> None:
        """Remove the last `counts` [b] tokens of each row."""
        self.lengths = self.lengths - (counts[:1] if (counts == counts[0]).all() else counts)

    def hold(self, values: list[ort.OrtValue], rows: int, room: int) -> None:
        """Replace the values, to which no step is bound yet."""
        self.values, self.rows, self.room, self.steps, self.spare = values, rows, room, {}, None


@dataclass(frozen=True)
class _Step:
    """A bound step and its output.

    Attributes:
        bound: The step.
        made: Memory of its output.
        rankings: Rankings of that output, by (number of tokens, whether by log-probabilities).
    """

    bound: BoundSession
    made: DeviceBuffer
    rankings: dict[tuple[int, bool], TopK] = field(default_factory=dict)


@dataclass
class _Spare:
    """The second buffer of a cache whose rows change places, and the bound copies there and back."""

    values: list[ort.OrtValue]
    steps: dict[tuple[str, str, int, int], _Step]
    there: BoundSession
    back: BoundSession


_MODELS: weakref.WeakSet[Model] = weakref.WeakSet()


def _after_fork() -> None:
    for model in list(_MODELS):
        model.begin_again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Model:
    """The graphs of a bundle. A graph is loaded when it is first used, since few callers need them all.

    Args:
        folder: Folder of the bundle.
        shape: (decoder layers, heads, d_kv, vocabulary).
        threads: Threads a call.
        provider: "cpu", or "cuda" to keep keys and values in GPU memory.
        inputs: Names of the adapters' inputs by graph, for a bank.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int, int],
        threads: int,
        provider: str = "cpu",
        inputs: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        layers, self._heads, self._d_kv, self._vocabulary = shape
        self._folder, self._threads, self._provider = folder, threads, provider
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._opening = threading.Lock()
        self._grown: set[str] = set()  # graphs whose last outputs were large
        _MODELS.add(self)
        self._adapters = inputs or {}
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]

    def open_all(self) -> None:
        """Load every graph now.

        Raises:
            LoraFtError: A graph has unexpected inputs or outputs.
        """
        for name in self._inputs:
            self._session(name)

    def encode(self, ids: np.ndarray, mask: np.ndarray, adapters: Chosen | None = None) -> Source:
        """Encode sources [b, s], int64, each row with its adapter.

        Raises:
            LoraFtError: An id is not in the vocabulary, since the tokenizer belongs to another model.
        """
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise LoraFtError(
                f"{self._folder}: a token id is outside the vocabulary (got {ids.max()}, the model has "
                f"{self._vocabulary:,} rows)",
                "copy the tokenizer.json that belongs to the model, or export it again",
            )
        held = ort_value(mask, self._provider)
        graph, given = "encoder", [ort_value(ids), held]
        if adapters:
            graph = ADAPTED + graph
            given += adapters.values(self._adapters[graph])
        return Source(len(ids), [held, *self._run(graph, given, self._prefixed("cross"))], adapters)

    def cache(self, rows: int) -> Cache:
        """Return an empty cache."""
        return Cache([self._room(rows, _ROOM) for _ in self._names], rows, _ROOM)

    def step(self, source: Source, cache: Cache, tokens: np.ndarray, *, early: bool = False) -> np.ndarray:
        """Return the likeliest token after each of these tokens, int64 [b, q].

        Args:
            source: Encoded sources; consecutive rows of `cache` share one of them.
            cache: Grows by q tokens.
            tokens: Next tokens, int64 [b, q].
            early: Never return </s>, since the answer is too short.
        """
        return self._advance(source, cache, tokens, "next", early).made.read().copy()

    def logits(self, source: Source, cache: Cache, tokens: np.ndarray, *, copy: bool = True) -> np.ndarray:
        """Return the logits of `step`, float32 [b, q, vocabulary].

        Without `copy` they are a view that the next call overwrites.
        """
        made = self._advance(source, cache, tokens, "logits").made.read()
        return made.copy() if copy else made

    def likeliest(
        self,
        source: Source,
        cache: Cache,
        tokens: np.ndarray,
        count: int,
        *,
        normal: bool = True,
        before: Edit | None = None,
        after: Edit | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest next tokens and their scores, for single tokens [b, 1].

        Args:
            source, cache, tokens: See `step`.
            count: Number of tokens a row.
            normal: Return log-probabilities; logits take less time.
            before: Edits the logits [b, vocabulary].
            after: Edits the log-probabilities [b, vocabulary].

        Returns:
            (scores, tokens) in descending order, each [b, count].
        """
        step = self._advance(source, cache, tokens, "logits")
        key = count, normal
        if key not in step.rankings:
            normalise = self._session("normal") if normal else None
            step.rankings[key] = TopK(step.made, count, normalise, self._session("best"), self._provider)
        return step.rankings[key].run(before, after)

    def _advance(self, source: Source, cache: Cache, tokens: np.ndarray, wanted: str, early: bool = False) -> _Step:
        """Run the decoder on these tokens; the next call overwrites the output of the returned step."""
        count, lengths = tokens.shape[1], cache.lengths
        longest = max(lengths.tolist()) + count
        if longest > cache.room:
            self._make_room(cache, longest)
        if cache.source is not source:
            cache.source, cache.steps, cache.spare = source, {}, None
        self._follow(cache)
        # the faster attention of `step` supports a bias on processors only
        alone = self._provider == "cpu" and (count == 1 or cache.rows == 1 or longest == count)
        graph = "step" if alone else "decoder"
        key = ADAPTED + graph if source.adapters else graph, wanted, count, len(lengths)
        if key not in cache.steps:
            cache.steps[key] = self._bound(key[0], source, cache, tokens, wanted)
        step = cache.steps[key]
        step.bound.run(tokens, lengths, early)
        cache.lengths = lengths + count
        return step

    def _follow(self, cache: Cache) -> None:
        """Drop steps that are bound to sessions of the parent process, whose threads a forked child lacks."""
        if cache.sessions is not self._sessions:
            cache.sessions, cache.steps, cache.spare = self._sessions, {}, None

    def _bound(self, graph: str, source: Source, cache: Cache, tokens: np.ndarray, wanted: str) -> _Step:
        made = np.empty(
            tokens.shape if wanted == "next" else (*tokens.shape, self._vocabulary),
            np.int64 if wanted == "next" else np.float32,
        )
        names = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        fixed = dict(zip(names, [*source.values, *cache.values], strict=True))
        if source.adapters:
            inputs = self._adapters[graph]
            fixed |= zip(inputs, source.adapters.held(inputs), strict=True)
        presents = dict(zip(self._presents, cache.values, strict=True))
        memory = DeviceBuffer.of(made, "cpu" if wanted == "next" else self._provider)  # read by Python
        given = {"input_ids": tokens, "lengths": cache.lengths, "early": np.array(False)}
        return _Step(
            BoundSession(self._session(graph), fixed, {wanted: memory.value, **presents}, given, self._provider), memory
        )

    def _make_room(self, cache: Cache, length: int) -> None:
        """Double the capacity until `length` fits, so that copying stays a small part of a long answer."""
        room = cache.room
        while room < length:
            room *= 2
        made = []
        for value in cache.values:
            larger = np.zeros((cache.rows, self._heads, room, self._d_kv), np.float32)
            larger[:, :, : cache.room] = value.numpy()
            made.append(ort_value(larger, self._provider))
        cache.hold(made, cache.rows, room)

    def _room(self, rows: int, room: int) -> ort.OrtValue:
        return ort_value(np.zeros((rows, self._heads, room, self._d_kv), np.float32), self._provider)

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        """Return some of the sources, by row number, int64 [n]."""
        mask, *cross = source.values
        values = [ort_value(mask.numpy()[rows], self._provider), *self._selected(cross, rows)]
        return Source(len(rows), values, source.adapters and source.adapters.take(rows))

    def select_cache(self, cache: Cache, rows: np.ndarray) -> None:
        """Keep some rows of the cache, by row number, int64 [n]."""
        if len(rows) == cache.rows:
            self._reorder(cache, rows)
        else:
            cache.hold(self._selected(cache.values, rows), len(rows), cache.room)
        if len(cache.lengths) > 1:
            cache.lengths = cache.lengths[rows]

    def _reorder(self, cache: Cache, rows: np.ndarray) -> None:
        """Reorder without changing the number of rows, as every beam search step does: two bound buffers take turns."""
        self._follow(cache)
        if cache.spare is None:
            other = [self._room(cache.rows, cache.room) for _ in cache.values]
            names, given = self._prefixed("selected"), {"rows": rows}
            there, back = (
                BoundSession(
                    self._session("select"),
                    dict(zip(self._names, source, strict=True)),
                    dict(zip(names, target, strict=True)),
                    given,
                    self._provider,
                )
                for source, target in ((cache.values, other), (other, cache.values))
            )
            cache.spare = _Spare(other, {}, there, back)
        spare = cache.spare
        spare.there.run(rows)
        cache.spare = _Spare(cache.values, cache.steps, spare.back, spare.there)
        cache.values, cache.steps = spare.values, spare.steps

    def _selected(self, values: list[ort.OrtValue], rows: np.ndarray) -> list[ort.OrtValue]:
        return self._run("select", [ort_value(rows), *values], self._prefixed("selected"))

    def _run(self, graph: str, values: Sequence[ort.OrtValue], wanted: list[str]) -> list[ort.OrtValue]:
        """Return the outputs of a graph, left on its device."""
        options = SHRINK_ARENA if self._provider == "cpu" and self._gives_back(graph, values) else RUN
        made = run_positional(
            self._session(graph), self._inputs[graph], values, wanted, self._provider, options=options
        )
        if math.prod(made[0].shape()) * 4 * len(made) > _LARGE:
            self._grown.add(graph)
        return made

    def _gives_back(self, graph: str, values: Sequence[ort.OrtValue]) -> bool:
        """Return whether a call should return unused memory to the system.

        An encoder's attention scores, [b, heads, s, s] floats, are free as soon as it ends. The outputs of a graph are
        in use then, so large ones are returned by the next call.
        """
        grown = graph in self._grown
        self._grown.discard(graph)
        if not graph.endswith("encoder"):
            return grown
        rows, length = values[0].shape()
        return grown or rows * length * length * self._heads * 4 > _LARGE

    def _prefixed(self, prefix: str) -> list[str]:
        return [f"{prefix}.{name}" for name in self._names]

    @cached_property
    def _presents(self) -> list[str]:
        return self._prefixed("present")

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """Names of the inputs of each graph, in the order of the calls."""
        state = [_MASK, *self._prefixed("cross"), *self._prefixed("past")]
        plain = {
            "encoder": ["input_ids", "attention_mask"],
            "decoder": ["input_ids", "lengths", "early", *state],
            "step": ["input_ids", "lengths", "early", *state],
            "normal": ["logits"],
            "best": ["scores", "count"],
            "select": ["rows", *self._names],
        }
        return plain | {name: plain[name.removeprefix(ADAPTED)] + list(more) for name, more in self._adapters.items()}

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            with self._opening:
                if name not in self._sessions:
                    self._sessions[name] = self._open(name)
        return self._sessions[name]

    def begin_again(self) -> None:
        """Forget the sessions in a forked child, which lacks their threads; they are opened again when needed.

        They are never destroyed, since that would wait for threads that do not exist.
        """
        for session in self._sessions.values():
            keep_alive(session)
        self._sessions, self._opening = {}, threading.Lock()

    def _open(self, name: str) -> ort.InferenceSession:
        path = self._folder / f"{name}.onnx"
        try:
            session = open_session(path, self._threads, self._provider)
        except Exception as error:
            if "escapes model directory" not in str(error):  # in the words of ONNX Runtime 1.26 and later
                raise
            raise LoraFtError(
                f"weights.bin of {self._folder} is a link to another folder than {path.name}'s, which ONNX Runtime "
                f"{ort.__version__} refuses",
                "copy the bundle with `cp -rL` and use the copy",
            ) from error
        found = {entry.name for entry in session.get_inputs()}
        odd = found ^ set(self._inputs[name])
        made = {entry.name for entry in session.get_outputs()}
        odd |= {entry.name for entry in (*session.get_inputs(), *session.get_outputs()) if not self._fits(entry)}
        if name.endswith("encoder"):
            odd |= made ^ set(self._prefixed("cross"))
        if odd:
            raise LoraFtError(
                f"{path} takes or makes {', '.join(sorted(odd)[:4])} against what its config.json says",
                "export the bundle again",
            )
        return session

    def _fits(self, entry: Any) -> bool:
        """Return whether an input or output of a graph has the sizes in config.json."""
        if entry.name.startswith(("past.", "cross.", "present.")):
            return entry.shape[1] == self._heads and entry.shape[3] == self._d_kv
        return entry.name not in ("logits", "log_probs", "scores") or entry.shape[-1] == self._vocabulary
