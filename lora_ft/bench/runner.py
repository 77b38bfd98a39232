"""Time engines against each other: each in its own process, one turn at a time, in a random order each round."""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.bench import report
from lora_ft.bench import statistics as figures
from lora_ft.bench.engines import EXACT, Engine, parse
from lora_ft.bench.models import BenchModel, megabytes
from lora_ft.bench.peer_environments import interpreter
from lora_ft.bench.roofline import memory_of, step_bytes
from lora_ft.bench.subprocesses import Process, evict
from lora_ft.bench.suite import Suite
from lora_ft.core import energy
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.progress import Progress

_WORKER = Path(__file__).with_name("worker.py")
_TIES = 0.25  # share of rows that may differ in full precision, because two tokens are nearly tied


@dataclass
class TimedEngine:
    """An engine with a model and a number of threads; `process` is None unless it is running.

    Attributes:
        name: Name in tables.
        subject, engine, threads, provider: What is timed.
        facts: Fields of its `EngineReport` that were measured so far.
        step: Bytes of weights that a step reads, or None if unknown.
    """

    name: str
    subject: BenchModel
    engine: Engine
    threads: int
    provider: str
    facts: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None
    step: float | None = None

    def start(self, running: contextlib.ExitStack, progress: Progress) -> None:
        """Prepare the model, load it with a cold and a warm file cache, and keep the last process running.

        Raises:
            LoraFtError: The engine cannot be prepared or started.
        """
        python = interpreter(self.engine.peer)
        prepared = self.subject.prepare(self.engine, progress)
        checkpoint = self.subject.checkpoint or prepared
        kind = str(self.engine.file) if self.engine.file else self.engine.kind
        arguments = [kind, self.engine.precision, str(checkpoint), str(prepared), str(self.threads), self.provider]
        if not prepared.is_dir():
            with self._process(python, arguments) as converter:
                converter.ask("convert")
        with self._process(python, arguments) as first:
            self.facts["imports"] = first.ask("imports")["seconds"]
            evict(prepared)
            self.facts["cold"] = first.ask("load")["seconds"]
        process = running.enter_context(self._process(python, arguments))
        process.ask("imports")
        loaded = process.ask("load")
        self.facts |= {"warm": loaded["seconds"]} | {name: loaded.get(name) for name in ("steps_by", "encoder_by")}
        self.facts["megabytes"] = megabytes(prepared, checkpoint)
        if self.provider == "cpu":
            self.step = step_bytes(self.engine, prepared, self.subject.checkpoint)
            self.facts["weights_in"] = memory_of(self.step) if self.step else None
        self.process = process

    def _process(self, python: str, arguments: Sequence[str]) -> Process:
        return Process(
            f"the engine {self.name}",
            [python, "-P", str(_WORKER), *arguments],  # -P: modules in the worker's folder must not shadow packages
            # CI turns off openvino_telemetry, which OpenVINO's converters load; it has no other switch
            {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false", "CI": "true"},
        )

    def generate(self, ids: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
        """Return the tokens and times of a batch of prompts."""
        assert self.process is not None
        return self.process.ask("generate", ids=ids, **options)

    def fail(self, error: str) -> None:
        """Exclude the engine from all later measurements, and record the reason."""
        self.facts["error"] = error
        self.process = None

    def described(self) -> report.EngineReport:
        """Return the report of the engine, with its current memory."""
        if self.process is not None:
            self.facts |= self.process.memory()
        return report.EngineReport(
            name=self.name,
            engine=self.engine.kind or str(self.engine.file),
            precision=self.engine.precision,
            model=self.subject.name,
            threads=self.threads,
            provider=self.provider,
            **self.facts,
        )


def timed_engines(subjects: Sequence[BenchModel], suite: Suite) -> list[TimedEngine]:
    """Return every combination of model, engine, threads and provider; names contain only what differs.

    Raises:
        UsageError: An engine cannot load any of the models, or no engine can load a model.
    """
    named = [parse(text) for text in suite.engines]
    loadable = {subject.name: subject.loadable(named) for subject in subjects}
    for engine in named:
        if not any(engine in able for able in loadable.values()):
            own = ", ".join(dict.fromkeys(subject.bundle_engine for subject in subjects))
            raise UsageError(f"the engine {engine.name} cannot load a bundle for {own}", f"pass --engine {own}")
    for subject in subjects:
        if not loadable[subject.name]:
            own = subject.bundle_engine
            raise UsageError(f"{subject.name} is a bundle for {own}, which is not timed", f"add --engine {own}")
    engines = []
    for subject, threads, provider in itertools.product(subjects, suite.threads, suite.provider):
        for engine in loadable[subject.name]:
            name = f"{Path(subject.name).name} {engine.name}" if len(subjects) > 1 else engine.name
            if len(suite.threads) > 1:
                name += f" x{threads or allowed_cpus()}"
            if len(suite.provider) > 1:
                name += f" on {provider}"
            engines.append(TimedEngine(name, subject, engine, threads or allowed_cpus(), provider))
    return engines


@dataclass(frozen=True)
class Shape:
    """A case: batch size, tokens in, tokens out and decoding."""

    batch: int
    source: int
    new: int
    decoding: str


def shapes(suite: Suite) -> list[Shape]:
    """Return all cases of a suite."""
    return [Shape(*values) for values in itertools.product(suite.batch, suite.source, suite.new, suite.decoding)]


@dataclass
class Samples:
    """Measurements of one engine at one case, one value for each round."""

    total: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    encoder: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


@dataclass
class Clock:
    """Seconds of timed calls inside engines, and of the whole phase around them."""

    inside: float = 0.0
    around: float = 0.0

    @property
    def harness(self) -> report.Harness:
        """Return the time spent outside engines."""
        seconds = max(self.around - self.inside, 0.0)
        return report.Harness(seconds=seconds, share=seconds / self.around if self.around else 0.0)


class Runner:
    """Times engines against each other.

    Attributes:
        samples: Measurements by case and engine.
        clock: Time inside engines, and total time.
    """

    def __init__(self, suite: Suite, engines: Sequence[TimedEngine], sources: Callable[[int, int], list[list[int]]]):
        self._suite, self._engines, self._sources = suite, engines, sources
        self._order = random.Random(suite.seed)
        self._joules: dict[str, Callable[[], float] | None] = {name: energy.meter(name) for name in suite.provider}
        self.samples: dict[Shape, dict[str, Samples]] = {}
        self.clock = Clock()

    @property
    def turns(self) -> int:
        """Return the number of turns, including the warm-up of each case."""
        return sum(len(self._able(shape)) for shape in shapes(self._suite)) * (self._suite.rounds + 1)

    def rounds(self, after_turn: Callable[[], None]) -> Iterator[None]:
        """Time all cases; yield after each round and call `after_turn` after each turn."""
        phase = time.perf_counter()
        for shape in shapes(self._suite):
            ids = self._sources(shape.batch, shape.source)
            self.samples[shape] = {engine.name: Samples() for engine in self._able(shape)}
            for number in range(self._suite.rounds + 1):
                able = self._able(shape)
                for engine in self._order.sample(able, len(able)):
                    self._turn(engine, shape, ids, keep=number > 0)  # the first round allocates and compiles
                    after_turn()
                yield
                self.clock.around = time.perf_counter() - phase

    def _able(self, shape: Shape) -> list[TimedEngine]:
        return [engine for engine in self._engines if engine.process is not None and engine.engine.can(shape.decoding)]

    def _turn(self, engine: TimedEngine, shape: Shape, ids: list[list[int]], *, keep: bool) -> None:
        samples = self.samples[shape][engine.name]
        forced = {"decoding": shape.decoding, "room": shape.new}
        try:
            assert engine.process is not None
            encoder = engine.process.ask("encode", ids=ids)["seconds"]
            first = engine.generate(ids, new=1, least=1, **forced)
            meter = self._joules[engine.provider]
            before = meter() if meter else 0.0
            whole = engine.generate(ids, new=shape.new, least=shape.new, **forced)
            joules = meter() - before if meter else None
            _check_lengths(whole["tokens"], shape)
        except LoraFtError as error:
            engine.fail(str(error))
            del self.samples[shape][engine.name]
            return
        self.clock.inside += (encoder or 0.0) + first["seconds"] + whole["seconds"]
        if not keep:
            return
        samples.total.append(whole["seconds"])
        samples.first.append(first["seconds"])
        samples.cpu.append(whole["cpu"])
        samples.encoder += [encoder] if encoder is not None else []
        samples.joules += [joules] if joules is not None else []
        samples.tokens = samples.tokens or whole["tokens"]

    def cases(self, bandwidth: Callable[[float], float]) -> list[report.Case]:
        """Return the cases with at least one finished round.

        Args:
            bandwidth: Returns the bytes per second at which weights of a number of bytes are read.
        """
        return [
            report.Case(
                batch=shape.batch,
                source=shape.source,
                new=shape.new,
                decoding=shape.decoding,
                timings=self._timings(shape, finished, bandwidth),
            )
            for shape, by_engine in self.samples.items()
            if (finished := {name: samples for name, samples in by_engine.items() if samples.total})
        ]

    def _timings(
        self, shape: Shape, by_engine: Mapping[str, Samples], bandwidth: Callable[[float], float]
    ) -> dict[str, report.Timing]:
        by_name = {engine.name: engine for engine in self._engines}
        baseline = next(iter(by_engine.values()))
        # engines draw different random numbers, so sampled tokens cannot be compared
        compared = None if shape.decoding == "sample" else reference([by_name[name] for name in by_engine])
        timings: dict[str, report.Timing] = {}
        for name, samples in by_engine.items():
            count = min(len(samples.total), len(baseline.total))  # the last round may be incomplete
            later = [
                (total - first) / (shape.new - 1) for total, first in zip(samples.total, samples.first, strict=True)
            ]
            per_token = statistics.median(later)
            step = by_name[name].step
            timings[name] = report.Timing(
                total=samples.total,
                first=samples.first,
                encoder=samples.encoder,
                cpu=samples.cpu,
                joules=samples.joules,
                per_token=per_token,
                tokens_per_second=shape.batch * shape.new / statistics.median(samples.total),
                percentiles=figures.percentiles(samples.total),
                ratio=figures.ratio(baseline.total[:count], samples.total[:count], self._suite.seed),
                floor=step / bandwidth(step) / per_token if step and per_token > 0 else None,
                identical=share_equal(samples.tokens, by_engine[compared].tokens) if compared else None,
                spread=figures.spread(samples.total),
            )
        return timings


def reference(engines: Sequence[TimedEngine]) -> str:
    """Return the name of the reference engine: the first in full precision, else the first."""
    exact = [engine.name for engine in engines if engine.engine.precision == EXACT]
    return (exact or [engine.name for engine in engines])[0]


def differing(engines: Sequence[TimedEngine], cases: Sequence[report.Case]) -> list[str]:
    """Return warnings about engines in full precision whose tokens differ from the reference's in some rows.

    In a few rows two tokens are nearly tied, so the order of additions decides. An engine that differs in more rows is
    wrong and is marked as failed.
    """
    warnings = []
    for engine in engines:
        shares = [
            (timing.identical, case.batch)
            for case in cases
            if (timing := case.timings.get(engine.name)) and timing.identical is not None
        ]
        rows = sum(batch for _, batch in shares)
        different = round(rows - sum(share * batch for share, batch in shares))
        if engine.engine.precision != EXACT or not different or "error" in engine.facts:
            continue
        difference = f"its tokens differ from the reference's in {different} of {rows} rows"
        if different > _TIES * rows:
            engine.facts["error"] = f"wrong: {difference}"
        else:
            warnings.append(f"{engine.name}: {difference}")
    return warnings


def share_equal(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Return the share of equal pairs."""
    return float(np.mean([a == b for a, b in zip(first, second, strict=True)]))


def _check_lengths(tokens: Sequence[Sequence[int]], shape: Shape) -> None:
    lengths = {len(row) for row in tokens}
    if len(tokens) != shape.batch or lengths != {shape.new}:
        raise LoraFtError(
            f"wrong: it returned {len(tokens)} rows of {sorted(lengths)} tokens (expected {shape.batch} of {shape.new})"
        )
