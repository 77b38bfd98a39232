"""The graphs of a bundle behind arrays: encode sources, take decoder steps, keep the cache inside ONNX Runtime.

Where steps follow each other, their values are bound to the graph once (`BoundSession`); other calls hand theirs over
as one vector in a fixed order. Either way there is no dictionary and no copy: of a step of 1 to 4 ms, Python may take a
twentieth.
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

_ROOM = 64  # tokens that a cache has room for at first
_LARGE = 2**26  # bytes; taking memory anew costs a millisecond for each 10 MB
_MASK = "encoder_attention_mask"


@dataclass(frozen=True)
class Source:
    """Encoded sources: their mask, and the cross-attention keys and values of every layer.

    Attributes:
        rows: how many.
        values: the mask, then keys and values in the graphs' order.
        adapters: of the rows, or None where none has one.
    """

    rows: int
    values: list[ort.OrtValue]
    adapters: Chosen | None = None


@dataclass
class Cache:
    """Self-attention keys and values of the tokens made so far, with room for more, which steps write there.

    Attributes:
        values: keys and values in the graphs' order, each [b, heads, room, d_kv].
        rows: how many.
        room: tokens.
        lengths: int64 [b], or [1] where all are alike: of how many tokens of each row there are keys and values.
        source: what the steps read.
        steps: those that are bound to these values, by graph, what they put out and the shapes of what they take.
        spare: the same again, for `values` in another order.
        sessions: the model's, that steps are bound to; a forked child has others.
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
        """Take back the last tokens of each row [b]."""
        self.lengths = self.lengths - (counts[:1] if (counts == counts[0]).all() else counts)

    def hold(self, values: list[ort.OrtValue], rows: int, room: int) -> None:
        """Other values, to which nothing is bound."""
        self.values, self.rows, self.room, self.steps, self.spare = values, rows, room, {}, None


@dataclass(frozen=True)
class _Step:
    """A step, the memory that it writes into, and what ranks the tokens that lie there, by how many are wanted and
    whether by their log-probabilities."""

    bound: BoundSession
    made: DeviceBuffer
    rankings: dict[tuple[int, bool], TopK] = field(default_factory=dict)


@dataclass
class _Spare:
    """What a cache swaps with when its rows change places, and how they get there and back."""

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
    """The graphs in a folder. A graph is loaded when it is first used: few callers need them all.

    Args:
        folder: of the bundle.
        shape: (decoder layers, heads, d_kv, vocabulary).
        threads: for one call.
        provider: "cpu", or "cuda", where keys and values stay in the GPU's memory.
        inputs: names of the adapters' inputs, by graph, where the bundle has a bank.
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
        self._grown: set[str] = set()  # graphs whose last call put out much
        _MODELS.add(self)
        self._adapters = inputs or {}
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]

    def open_all(self) -> None:
        """Load every graph now.

        Raises:
            LoraFtError: a graph takes other inputs than it should.
        """
        for name in self._inputs:
            self._session(name)

    def encode(self, ids: np.ndarray, mask: np.ndarray, adapters: Chosen | None = None) -> Source:
        """Encode sources [b, s], int64, each with its adapter.

        Raises:
            LoraFtError: An id is not in the vocabulary, as the tokenizer is another model's.
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
        """The cache before the first token."""
        return Cache([self._room(rows, _ROOM) for _ in self._names], rows, _ROOM)

    def step(self, source: Source, cache: Cache, tokens: np.ndarray, *, early: bool = False) -> np.ndarray:
        """Put tokens through the decoder; the likeliest token after each of them, int64 [b, q].

        Args:
            source: rows of `cache` that stand together share one of its rows.
            cache: grows by q.
            tokens: int64 [b, q].
            early: </s> may not come yet.
        """
        return self._advance(source, cache, tokens, "next", early).made.read().copy()

    def logits(self, source: Source, cache: Cache, tokens: np.ndarray, *, copy: bool = True) -> np.ndarray:
        """As `step`, the logits float32 [b, q, vocabulary]; without `copy` the cache's memory, until the next call."""
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
        """As `step` for single tokens [b, 1]: the likeliest next ones and their scores.

        Args:
            source, cache, tokens: as for `step`.
            count: how many.
            normal: scores are log-probabilities, otherwise logits, which takes less time.
            before: changes the logits [b, vocabulary].
            after: changes the log-probabilities [b, vocabulary].

        Returns:
            (scores, tokens), falling, each [b, count].
        """
        step = self._advance(source, cache, tokens, "logits")
        key = count, normal
        if key not in step.rankings:
            normalise = self._session("normal") if normal else None
            step.rankings[key] = TopK(step.made, count, normalise, self._session("best"), self._provider)
        return step.rankings[key].run(before, after)

    def _advance(self, source: Source, cache: Cache, tokens: np.ndarray, wanted: str, early: bool = False) -> _Step:
        """Put these tokens through the decoder; what is made of them lies in memory that the next call writes into."""
        count, lengths = tokens.shape[1], cache.lengths
        longest = max(lengths.tolist()) + count
        if longest > cache.room:
            self._make_room(cache, longest)
        if cache.source is not source:
            cache.source, cache.steps, cache.spare = source, {}, None
        self._follow(cache)
        # the faster attention of `step` takes a bias on processors alone
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
        """Drop what a cache has bound to sessions of the process that this one was forked from: their threads died."""
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
        memory = DeviceBuffer.of(made, "cpu" if wanted == "next" else self._provider)  # which Python reads
        given = {"input_ids": tokens, "lengths": cache.lengths, "early": np.array(False)}
        return _Step(
            BoundSession(self._session(graph), fixed, {wanted: memory.value, **presents}, given, self._provider), memory
        )

    def _make_room(self, cache: Cache, length: int) -> None:
        """Twice the room as often as it takes, so that copying stays a small part however long an answer is."""
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
        """Those rows of the sources, int64 [n]."""
        mask, *cross = source.values
        values = [ort_value(mask.numpy()[rows], self._provider), *self._selected(cross, rows)]
        return Source(len(rows), values, source.adapters and source.adapters.take(rows))

    def select_cache(self, cache: Cache, rows: np.ndarray) -> None:
        """Make the cache one of those of its rows, int64 [n]."""
        if len(rows) == cache.rows:
            self._reorder(cache, rows)
        else:
            cache.hold(self._selected(cache.values, rows), len(rows), cache.room)
        if len(cache.lengths) > 1:
            cache.lengths = cache.lengths[rows]

    def _reorder(self, cache: Cache, rows: np.ndarray) -> None:
        """As many rows as before, as every step of a beam search has them: two memories take turns, bound once."""
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
        """What a graph makes; it stays where it is made."""
        options = SHRINK_ARENA if self._provider == "cpu" and self._gives_back(graph, values) else RUN
        made = run_positional(
            self._session(graph), self._inputs[graph], values, wanted, self._provider, options=options
        )
        if math.prod(made[0].shape()) * 4 * len(made) > _LARGE:
            self._grown.add(graph)
        return made

    def _gives_back(self, graph: str, values: Sequence[ort.OrtValue]) -> bool:
        """Return whether memory that a call takes, or the call before it took, goes back to the system at its end.

        An encoder's scores of attention, [b, heads, s, s] floats, can go at once. What a graph puts out is still in use
        then, so it goes at the end of the next call.
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
        """What each graph takes, in the order in which it is given."""
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
        """Forget the sessions in a forked child, where their threads are not; what it needs is opened anew.

        They are kept alive for good: to destroy them would wait for threads that do not exist.
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
        """Whether an input or output of a graph has the sizes that the configuration names."""
        if entry.name.startswith(("past.", "cross.", "present.")):
            return entry.shape[1] == self._heads and entry.shape[3] == self._d_kv
        return entry.name not in ("logits", "log_probs", "scores") or entry.shape[-1] == self._vocabulary
