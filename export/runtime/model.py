"""The graphs of a bundle as functions of arrays: encode sources, run decoder steps, manage the key-value cache.

The cache never leaves ONNX Runtime. It is allocated with spare capacity, and each step writes its keys and values into
that capacity, so a step copies nothing. The capacity doubles when it is used up.

Consecutive steps have equal shapes, so their inputs and outputs are bound to a graph once (`BoundSession`), and a step
is a single call. Other graphs receive their inputs as a list in a fixed order. Dictionaries are avoided: a step takes
1 to 4 ms, and Python's share of it should stay below a twentieth.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import onnxruntime as ort

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime.bank import RowAdapters
from lora_ft.export.runtime.cache import Cache, Source, Spare, Step
from lora_ft.export.runtime.encoder_kernel import EncoderKernel
from lora_ft.export.runtime.forks import begin_again_in_children
from lora_ft.export.runtime.graph_files import MASK, PublishedFiles, graph_inputs, open_graph, prefixed
from lora_ft.export.runtime.io_binding import BoundSession, DeviceBuffer, Edit, TopK
from lora_ft.export.runtime.kernel import KERNEL, StepKernel
from lora_ft.export.runtime.manifest import ADAPTED
from lora_ft.export.runtime.native_session import RUN, SHRINK_ARENA, keep_alive, run_positional
from lora_ft.export.runtime.session import on_lines, ort_value
from lora_ft.export.runtime.source_parts import LARGE, encode_in_parts, padded, rows_at_once, score_bytes

_ROOM = 64  # initial capacity of a cache, in tokens
_RANKED = ["highest", "tokens"]


class Model:
    """The graphs of a bundle. A graph is loaded on first use, since few callers need all of them.

    Args:
        files: Files of the bundle.
        shape: (decoder layers, heads, d_kv, vocabulary).
        threads: Threads per call.
        provider: "cpu", or "cuda" to keep keys and values in GPU memory.
        inputs: Names of the adapter inputs of each graph, for a bank.
        label_tokens: Tokens whose logits the graph `labels` returns, ascending; () without that graph.

    Attributes:
        kernel: Kernel for the steps, or None for the graphs.
        encoder: Kernel for sources without adapters, or None for the graph.
    """

    def __init__(
        self,
        files: PublishedFiles,
        shape: tuple[int, int, int, int],
        threads: int,
        provider: str = "cpu",
        inputs: Mapping[str, Sequence[str]] | None = None,
        label_tokens: Sequence[int] = (),
    ) -> None:
        layers, self._heads, self._d_kv, self._vocabulary = shape
        self._files, self._threads, self._provider = files, threads, provider
        self._sessions: dict[tuple[str, int], ort.InferenceSession] = {}  # by graph and threads
        self._opening = threading.Lock()
        self._grown: set[str] = set()  # graphs whose last outputs were large
        self.kernel: StepKernel | None = None
        self.encoder: EncoderKernel | None = None
        begin_again_in_children(self)
        self._adapters, self._label_tokens = inputs or {}, np.array(label_tokens, np.int64)
        self._head_sizes = {"labels": len(label_tokens)}  # logits of graphs with fewer than the vocabulary
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]

    @property
    def provider(self) -> str:
        """Execution provider of the graphs, "cpu" or "cuda"."""
        return self._provider

    @property
    def threads(self) -> int:
        """Threads per call."""
        return self._threads

    @property
    def head_shape(self) -> tuple[int, int]:
        """Number of heads, and size of a key or value of one head."""
        return self._heads, self._d_kv

    @property
    def cache_names(self) -> list[str]:
        """Names of the keys and values of all decoder layers, in the graphs' order."""
        return self._names

    def open_all(self) -> None:
        """Load every graph now.

        Raises:
            LoraFtError: A graph has unexpected inputs or outputs.
        """
        for name in self._inputs.keys() - ({"labels"} if not self._label_tokens.size else set()):
            self._session(name)

    def open_step(self, threads: int, *, adapted: bool) -> None:
        """Load the graph of single steps for calls with fewer threads. Until then, such calls use all."""
        if self.kernel is None:
            self._session(ADAPTED + "step" if adapted else "step", threads)
            if self._label_tokens.size:
                self._session("labels", threads)

    def encode(
        self, ids: np.ndarray, mask: np.ndarray, adapters: RowAdapters | None = None, threads: int | None = None
    ) -> Source:
        """Encode sources [b, s], int64, each row with its adapter.

        The graph encodes long ones a few at a time, since their attention scores grow with the square of their length.

        Args:
            ids, mask: Tokens and their mask.
            adapters: Adapters of the rows.
            threads: Threads of this call, if another call is to run beside it. Default: all.

        Raises:
            LoraFtError: A token id is outside the vocabulary, so the tokenizer belongs to another model.
        """
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            raise LoraFtError(
                f"{self._files.folder}: a token id is outside the vocabulary (got {ids.max()}, the model has "
                f"{self._vocabulary:,} rows)",
                "copy the tokenizer.json that belongs to the model, or export it again",
            )
        if self.encoder and not adapters:
            return self.adopt(self.encoder.encode(*padded(ids, mask), threads or self._threads))
        at_once = rows_at_once(self._heads, ids.shape[1])
        if self._provider == "cpu" and len(ids) > at_once:
            return encode_in_parts(partial(self.encode, threads=threads), ids, mask, at_once, adapters)
        ids, mask = padded(ids, mask)
        graph, values = "encoder", [ort_value(ids), mask_value := ort_value(mask, self._provider)]
        if adapters:
            graph = ADAPTED + graph
            values += adapters.values(self._adapters[graph])
        cross = self._run(graph, values, prefixed("cross", self._names), threads)
        return self.adopt(Source(len(ids), [mask_value, *cross], adapters))

    def adopt(self, source: Source) -> Source:
        """Return a source as the steps take it: keys and values in fp16 for the kernel, in fp32 for the graphs."""
        return self.kernel.adopt(source) if self.kernel else source.expanded()

    def cache(self, rows: int) -> Cache:
        """Return an empty cache."""
        return Cache([self._room(rows, _ROOM) for _ in self._names], rows, _ROOM)

    def step(
        self, source: Source, cache: Cache, tokens: np.ndarray, *, forbid_eos: bool = False, threads: int | None = None
    ) -> np.ndarray:
        """Return the likeliest token after each of these tokens, int64 [b, q].

        Args:
            source: Encoded sources. Consecutive rows of `cache` may share a source.
            cache: Cache of the tokens so far; it grows by q tokens.
            tokens: Next tokens, int64 [b, q].
            forbid_eos: Exclude </s>, because the answer is shorter than its minimum.
            threads: See `encode`.
        """
        return self._advance(source, cache, tokens, "next", forbid_eos, threads).output.read().copy()

    def logits(
        self,
        source: Source,
        cache: Cache,
        tokens: np.ndarray,
        *,
        columns: np.ndarray | None = None,
        copy: bool = True,
        threads: int | None = None,
    ) -> np.ndarray:
        """Return the logits of `step`, float32 [b, q, vocabulary], or those [b, q, n] of the tokens `columns` [n].

        Without `copy` the result is a view, which the next call overwrites.
        """
        output = "logits" if columns is None or not np.array_equal(columns, self._label_tokens) else "labels"
        logits = self._advance(source, cache, tokens, output, threads=threads).output.read()
        if columns is not None and logits.shape[-1] > len(columns):
            return logits[..., columns]
        return logits.copy() if copy else logits

    def likeliest(
        self,
        source: Source,
        cache: Cache,
        tokens: np.ndarray,
        count: int,
        *,
        log_softmax: bool = True,
        before: Edit | None = None,
        after: Edit | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest next tokens and their scores, for single tokens [b, 1].

        Args:
            source, cache, tokens: See `step`.
            count: Number of tokens per row.
            log_softmax: Return log-probabilities; logits are faster.
            before: Edits the logits [b, vocabulary].
            after: Edits the log-probabilities [b, vocabulary].

        Returns:
            (scores, tokens) in descending order, each [b, count].
        """
        step = self._advance(source, cache, tokens, "logits")
        key = count, log_softmax
        if key not in step.rankings:
            log_softmax_session = self._session("log_softmax") if log_softmax else None
            step.rankings[key] = TopK(step.output, count, log_softmax_session, self._session("top_k"), self._provider)
        return step.rankings[key].run(before, after)

    def rank(
        self,
        logits: np.ndarray,
        count: int,
        *,
        log_softmax: bool = True,
        before: Edit | None = None,
        after: Edit | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `likeliest` returns, from logits [b, 1, vocabulary], which are changed."""
        if before:
            before(logits[:, -1])
        scores = logits
        if log_softmax:
            (log_probs,) = self._run("log_softmax", [ort_value(logits, self._provider)], ["log_probs"])
            scores = log_probs.numpy()
        if after:
            after(scores[:, -1])
        outputs = self._run("top_k", [ort_value(scores, self._provider), ort_value(np.array([count]))], _RANKED)
        highest, tokens = (value.numpy() for value in outputs)
        return highest[:, -1], tokens[:, -1]

    def _advance(
        self,
        source: Source,
        cache: Cache,
        tokens: np.ndarray,
        output: str,
        forbid_eos: bool = False,
        threads: int | None = None,
    ) -> Step:
        """Run the decoder on these tokens; the next call overwrites the output of the returned step."""
        count, lengths = tokens.shape[1], cache.lengths
        longest = max(lengths.tolist()) + count
        if longest > cache.room:
            cache.grow(longest, self._provider)
        if cache.source is not source:
            cache.source, cache.steps, cache.spare = source, {}, None
        self._follow(cache)
        graph = self._decoder_graph(source, cache, count, is_first=longest == count)
        if output == "labels":
            graph, output = "labels" if graph == "step" else graph, "logits"
        if threads is None or not (self.kernel or (graph, threads) in self._sessions):
            threads = self._threads
        key = graph, threads, output, count, len(lengths)
        step = cache.steps.get(key)
        if step is None:
            if self.kernel:
                step = self.kernel.step(threads, source, cache, tokens, output)
            else:
                step = self._bound(self._session(graph, threads), graph, source, cache, tokens, output)
            cache.steps[key] = step
        step.bound.run(tokens, lengths, forbid_eos)
        cache.lengths = lengths + count
        return step

    def _decoder_graph(self, source: Source, cache: Cache, count: int, *, is_first: bool) -> str:
        """Return the graph for a call of `count` tokens per row."""
        # on GPUs, the faster attention of `step` supports no bias
        alone = self._provider == "cpu" and (count == 1 or cache.rows == 1 or is_first)
        if self.kernel:
            return KERNEL
        if source.adapters:
            return f"{ADAPTED}step" if alone else f"{ADAPTED}decoder"
        if self._provider == "cpu" and count > 1 and not is_first and source.rows == cache.rows:
            return "draft"
        return "step" if alone else "decoder"

    def _follow(self, cache: Cache) -> None:
        """Drop steps bound to sessions of the parent process, whose threads a forked child lacks."""
        if cache.sessions is not self._sessions:
            cache.sessions, cache.steps, cache.spare = self._sessions, {}, None

    def _bound(
        self,
        session: ort.InferenceSession,
        graph: str,
        source: Source,
        cache: Cache,
        tokens: np.ndarray,
        output: str,
    ) -> Step:
        array = np.empty(tokens.shape, np.int64)
        if output == "logits":
            array = np.empty((*tokens.shape, self._head_sizes.get(graph, self._vocabulary)), np.float32)
        names = [MASK, *prefixed("cross", self._names), *prefixed("past", self._names)]
        fixed = dict(zip(names, [*source.values, *cache.values], strict=True))
        if source.adapters:
            inputs = self._adapters[graph]
            fixed |= zip(inputs, source.adapters.cached(inputs), strict=True)
        presents = dict(zip(prefixed("present", self._names), cache.values, strict=True))
        memory = DeviceBuffer.of(array, "cpu" if output == "next" else self._provider)  # read by Python
        examples = {"input_ids": tokens, "lengths": cache.lengths, "forbid_eos": np.array(False)}
        return Step(BoundSession(session, fixed, {output: memory.value, **presents}, examples, self._provider), memory)

    def _room(self, rows: int, room: int) -> ort.OrtValue:
        return ort_value(on_lines(np.zeros, (rows, self._heads, room, self._d_kv)), self._provider)

    def select_source(self, source: Source, rows: np.ndarray) -> Source:
        """Return some of the sources, by row number, int64 [n]."""
        if source.is_rounded:
            return source.selected(rows)
        values = [ort_value(source.values[0].numpy()[rows], self._provider), *self._selected(source.values[1:], rows)]
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
        """Reorder rows between two bound buffers, without allocating, since every step of beam search reorders."""
        self._follow(cache)
        if cache.spare is None:
            spare_values = [self._room(cache.rows, cache.room) for _ in cache.values]
            names, examples = prefixed("selected", self._names), {"rows": rows}
            forth, back = (
                BoundSession(
                    self._session("reorder_cache"),
                    dict(zip(self._names, source, strict=True)),
                    dict(zip(names, target, strict=True)),
                    examples,
                    self._provider,
                )
                for source, target in ((cache.values, spare_values), (spare_values, cache.values))
            )
            cache.spare = Spare(spare_values, {}, forth, back)
        spare = cache.spare
        spare.forth.run(rows)
        cache.spare = Spare(cache.values, cache.steps, spare.back, spare.forth)
        cache.values, cache.steps = spare.values, spare.steps

    def _selected(self, values: list[ort.OrtValue], rows: np.ndarray) -> list[ort.OrtValue]:
        return self._run("reorder_cache", [ort_value(rows), *values], prefixed("selected", self._names))

    def _run(
        self, graph: str, values: Sequence[ort.OrtValue], outputs: list[str], threads: int | None = None
    ) -> list[ort.OrtValue]:
        """Return the outputs of a graph, which stay on its device."""
        options = SHRINK_ARENA if self._provider == "cpu" and self._gives_back(graph, values) else RUN
        results = run_positional(
            self._session(graph, threads), self._inputs[graph], values, outputs, self._provider, options=options
        )
        if math.prod(results[0].shape()) * 4 * len(results) > LARGE:
            self._grown.add(graph)
        return results

    def _gives_back(self, graph: str, values: Sequence[ort.OrtValue]) -> bool:
        """Return whether a call should return unused memory to the system.

        An encoder's attention scores are free as soon as the call ends; large outputs are in use until the next one.
        """
        grown = graph in self._grown
        self._grown.discard(graph)
        return grown or (graph.endswith("encoder") and score_bytes(self._heads, *values[0].shape()) > LARGE)

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """Names of the inputs of each graph, in the order of its positional calls."""
        return graph_inputs(self._names, self._adapters)

    def _session(self, name: str, threads: int | None = None) -> ort.InferenceSession:
        key = name, threads or self._threads
        if key not in self._sessions:
            with self._opening:
                if key not in self._sessions:
                    sizes = self._heads, self._d_kv, self._head_sizes.get(name, self._vocabulary)
                    path, inputs = self._files.graph(name), self._inputs[name]
                    self._sessions[key] = open_graph(path, key[1], self._provider, inputs, self._names, sizes)
        return self._sessions[key]

    def begin_again(self) -> None:
        """Forget the sessions in a forked child, which lacks their threads. They are reopened on their next use.

        The old sessions are never destroyed, since that would wait for threads that do not exist.
        """
        for session in self._sessions.values():
            keep_alive(session)
        self._sessions, self._opening = {}, threading.Lock()
