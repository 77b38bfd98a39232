"""Run a suite on models and write the report, which is also saved every 10 seconds while the benchmark runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from lora_ft.bench import html, markdown, quality, serving
from lora_ft.bench.models import BenchModel, open_bench_model
from lora_ft.bench.report import BenchReport, Case, Quality, Service
from lora_ft.bench.roofline import DRAM_BLOCK, weight_bandwidth
from lora_ft.bench.runner import Runner, differing, reference, timed_engines
from lora_ft.bench.statistics import steadiness
from lora_ft.bench.suite import Suite
from lora_ft.core.errors import LoraFtError, OutputExistsError, UsageError
from lora_ft.core.files import write_text
from lora_ft.core.locks import locked
from lora_ft.core.output_paths import refuse_file
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.data.splits import Example, load_splits
from lora_ft.doctor import environment, stolen
from lora_ft.tasks.schema import Task

REPORT, PAGE, MARKDOWN = "report.json", "report.html", "report.md"
MODELS = Path("runs/bench/models")
_END = 1  # id of </s>
_SAVE_EVERY = 10.0  # seconds
_FEWEST_ROUNDS = 5  # fewer say little about whether timings agree
_STOLEN = 0.05  # share of a core that the host may withhold before the report warns


def bench(
    models: Sequence[str],
    suite: Suite,
    out: Path,
    *,
    task: Task | None = None,
    work: Path = MODELS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Time every engine of a suite on every model; see `measure`.

    Args:
        models: Runs, checkpoints, bases or bundles.
        work: Cache for checkpoints and bundles that are exported from the models.

    Raises:
        UsageError: A model does not exist; also as `measure`.
    """
    _refuse_report(out, overwrite=overwrite)
    progress = progress or Silent()
    subjects = [open_bench_model(name, work, progress) for name in models]
    return measure(subjects, suite, out, task=task, overwrite=overwrite, progress=progress)


def measure(
    subjects: Sequence[BenchModel],
    suite: Suite,
    out: Path,
    *,
    task: Task | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Time every engine of a suite on every model.

    Ctrl-C ends the benchmark early: the unfinished report is written and KeyboardInterrupt is raised.

    Args:
        subjects: The models.
        suite: Engines, cases and rounds.
        out: Folder for report.json, report.html and report.md.
        task: Task with the rows to score, if the models have none.
        overwrite: Replace an earlier report.
        progress: Receives stages and notes.

    Raises:
        UsageError: `out` holds a report, or rows are to be scored without a task.
        LoraFtError: No engine could be started; the message has the reason of the first.
    """
    _refuse_report(out, overwrite=overwrite)
    progress = progress or Silent()
    task = task or next((subject.task for subject in subjects if subject.task), None)
    if suite.rows and task is None:
        raise UsageError(f"the suite {suite.name} scores rows, but no model has a task", "add --task TASK or --rows 0")
    with locked(out.resolve() / REPORT):
        return _Bench(suite, out, subjects, task, progress).run()


def _refuse_report(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `out` holds a report and `overwrite` is False, or if another program's file is in the way."""
    if (out / REPORT).is_file() and not overwrite:
        raise OutputExistsError(f"{out / REPORT} already exists", "pass another --out or add --overwrite")
    for name in (REPORT, PAGE, MARKDOWN):
        refuse_file(out / name, "--out")


class _Bench:
    """A running benchmark: the figures measured so far, and the folder of its report."""

    def __init__(
        self, suite: Suite, out: Path, subjects: Sequence[BenchModel], task: Task | None, progress: Progress
    ) -> None:
        self._suite, self._out, self._task, self._progress = suite, out, task, progress
        self._tokenizer = subjects[0].tokenizer()
        self._examples = _examples(suite, task)
        self._engines = timed_engines(subjects, suite)
        self._runner = Runner(suite, self._engines, self._sources)
        self._bandwidth = cache(weight_bandwidth)
        self._quality: dict[str, Quality] = {}
        self._serving: dict[str, Service] = {}
        self._began, self._clock, self._saved = datetime.now(UTC), time.monotonic(), 0.0
        self._stolen, self._interrupted, self._environment = stolen(), False, environment()

    def run(self) -> BenchReport:
        with contextlib.ExitStack() as running:
            try:
                self._start(running)
                self._time()
                self._score()
                self._serve()
            except KeyboardInterrupt:
                self._interrupted = True
                raise
            finally:
                if any(engine.facts.get("warm") for engine in self._engines):
                    report = self._save(final=True)
        return report

    def _start(self, running: contextlib.ExitStack) -> None:
        for engine in self._engines:
            self._progress.stage(f"starting {engine.name}")
            try:
                engine.start(running, self._progress)
            except LoraFtError as error:
                engine.fail(str(error))
                self._progress.note(f"left out: {engine.name}: {error}")
        if not any(engine.process for engine in self._engines):
            raise LoraFtError(f"no engine could be started: {self._engines[0].facts['error']}")

    def _time(self) -> None:
        turns = 0

        def report_turn() -> None:
            nonlocal turns
            turns += 1
            self._progress.advance(turns)

        for size in (DRAM_BLOCK, *(engine.step for engine in self._engines if engine.step)):
            self._bandwidth(size)  # before the turns, since the measurement uses all cores
        self._progress.stage("timing", self._runner.turns)
        for _ in self._runner.rounds(report_turn):
            if time.monotonic() - self._saved > _SAVE_EVERY:
                self._save()

    def _score(self) -> None:
        if not self._suite.rows or self._task is None:
            return

        examples = self._examples[: self._suite.rows]

        def stage(name: str) -> Callable[[int], None]:
            self._progress.stage(f"scoring {name}", len(examples))
            return self._progress.advance

        self._quality = quality.compare(self._engines, self._task, examples, self._tokenizer, stage)
        self._save()

    def _serve(self) -> None:
        settings = self._suite.serving
        running = [engine for engine in self._engines if engine.process is not None]
        if settings is None or not running:
            return
        ids = self._tokenizer.encode(self._prompts(), self._task.lengths.source if self._task else 512)
        most = self._task.generation_options()["max_new_tokens"] if self._task else max(self._suite.new)
        full = serving.capacity(running[0], ids[: 8 * settings.max_batch], most, settings.max_batch)
        for number, share in enumerate(settings.loads):
            self._progress.stage(f"serving {share * full:.2g} requests/s", settings.requests * len(running))
            finished = 0

            def report_answer() -> None:
                nonlocal finished
                finished += 1
                self._progress.advance(finished)

            for engine in running:
                if engine.process is None:
                    continue
                try:
                    load = serving.serve(
                        engine, ids, share * full, most, settings, self._suite.seed + number, report_answer
                    )
                except LoraFtError as error:
                    engine.fail(str(error))
                    continue
                loads = [*(self._serving[engine.name].loads if engine.name in self._serving else ()), load]
                self._serving[engine.name] = Service(loads=loads, knee=serving.knee(loads, settings.slo))
                self._save()

    def _sources(self, batch: int, length: int) -> list[list[int]]:
        """Return `batch` prompts of `length` tokens: concatenated rows of the task, or random tokens without one."""
        rng = np.random.default_rng(self._suite.seed)
        if self._task is None:
            return rng.integers(3, min(self._tokenizer.size, 32000), (batch, length)).tolist()
        rows = [ids[:-1] for ids in self._tokenizer.encode(self._prompts())]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        prompts: list[list[int]] = []
        for start in range(batch):
            ids, i = list[int](), start
            while len(ids) < length - 1:
                ids += rows[i % len(rows)]
                i += batch
            prompts.append([*ids[: length - 1], _END])
        return prompts

    def _prompts(self) -> list[str]:
        return [example.prompt for example in self._examples] or list(SENTENCES)

    def _save(self, *, final: bool = False) -> BenchReport:
        cases = self._runner.cases(self._bandwidth)
        report = self._report(cases, differing(self._engines, cases) if final else [])
        report.write(self._out / REPORT)
        if final:
            write_text(self._out / PAGE, html.render(report))
            write_text(self._out / MARKDOWN, markdown.render(report))
        self._saved = time.monotonic()
        return report

    def _report(self, cases: Sequence[Case], different: Sequence[str]) -> BenchReport:
        unstable = steadiness(
            {f"{name} at {case.label}": timing.spread for case in cases for name, timing in case.timings.items()}
        )
        rounds = min((len(timing.total) for case in cases for timing in case.timings.values()), default=0)
        if rounds < _FEWEST_ROUNDS:
            unstable.append(f"{rounds} rounds are too few to tell whether timings agree (at least {_FEWEST_ROUNDS})")
        stolen_seconds = stolen() - self._stolen
        share = stolen_seconds / max(time.monotonic() - self._clock, 1e-9)
        if share > _STOLEN:
            unstable.append(f"the host withheld {share:.0%} of a core (CPU steal)")
        reports = [engine.described() for engine in self._engines]
        failures = [f"{engine.name}: {engine.error}" for engine in reports if engine.error]
        return BenchReport(
            suite=self._suite,
            environment=self._environment,
            began=self._began.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._clock,
            interrupted=self._interrupted,
            reference=reference([engine for engine in self._engines if "error" not in engine.facts] or self._engines),
            bandwidth=self._bandwidth(DRAM_BLOCK),
            contestants=reports,
            cases=list(cases),
            quality=self._quality,
            serving=self._serving,
            harness=self._runner.clock.harness,
            verdict="unstable" if unstable else "stable",
            warnings=[*failures, *different, *unstable],
        )


def _examples(suite: Suite, task: Task | None) -> list[Example]:
    """Return test rows of the task: those to score, and at least 64 for timing."""
    if task is None:
        return []
    limit = task.data.limit.model_copy(update={"test": max(suite.rows, 64)})  # the run may have scored fewer
    return load_splits(task.model_copy(update={"data": task.data.model_copy(update={"limit": limit})}), ["test"]).test
