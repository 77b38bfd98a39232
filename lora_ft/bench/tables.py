"""The tables and sentences of a report, from which the terminal, the Markdown and the HTML page are rendered.

Each table is a list of `Column`s: a heading, a function from an engine's row to its cell and, for columns that the
terminal shows too, a brief heading. A figure is added to all three renderings by adding its column here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_ft.bench.formatting import duration, interval, milliseconds, number, percent
from lora_ft.bench.regressions import Change
from lora_ft.bench.report import BenchReport, Case, EngineReport, Load, Percentiles, Quality, Timing
from lora_ft.bench.statistics import needed
from lora_ft.bench.training_report import Recipe, TrainingReport
from lora_ft.reports.table import NONE, Cell, Column, Table

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

SUMMARY = "Summary"
QUALITY = "Quality"
SERVING = "Serving"
LOADING = "Loading, memory and size"
DETAILS = "Percentiles, parts and costs"
ENVIRONMENT = "Environment"


def sections(report: BenchReport) -> dict[str, list[Table]]:
    """Return all tables by their heading; headings without tables are left out."""
    tables = {
        SUMMARY: [*speeds(report), *_failures(report)],
        QUALITY: quality(report),
        SERVING: serving(report),
        LOADING: _loading(report),
        DETAILS: [_details(report, case) for case in report.cases if case.timings],
        ENVIRONMENT: [_environment(report)],
    }
    return {heading: group for heading, group in tables.items() if group}


def facts(report: BenchReport) -> list[str]:
    """Return when the report was measured, for how long and on what."""
    suite = report.suite
    return [
        f"{report.began[:16].replace('T', ' ')} UTC",
        f"took {duration(report.seconds)}",
        f"{suite.rounds} rounds",
        " and ".join(suite.provider),
        f"reference {report.reference}",
        f"DRAM bandwidth {report.bandwidth / 1e9:.1f} GB/s",
    ]


def warnings(report: BenchReport) -> list[str]:
    """Return the warnings that apply to all figures of the report."""
    interrupted = ["The benchmark was interrupted; figures measured until then are shown."]
    return interrupted * report.interrupted + report.warnings


def median_total(case: Case, name: str) -> float:
    """Return the median total time of one engine, in seconds."""
    return statistics.median(case.timings[name].total)


def percentile_cell(percentiles: Percentiles, name: str) -> Cell:
    """Return p50, p90 or p99 in milliseconds, or an empty cell with a hint if there are too few samples."""
    value: float | None = getattr(percentiles, name)
    if value is None:
        return Cell(NONE, f"{percentiles.samples:,} samples of the {needed(SHARES[name]):,} required")
    return Cell(milliseconds(value))


@dataclass(frozen=True)
class _Speed:
    """One row of the summary: an engine at one case. `error` is why the engine failed, or ""."""

    name: str
    timing: Timing
    quality: Quality | None
    fastest: bool
    error: str

    @property
    def label(self) -> Cell:
        if self.error:
            return Cell(f"{self.name} (failed)", self.error)
        return Cell(self.name, "fastest" if self.fastest else "", self.fastest)


def speeds(report: BenchReport) -> list[Table]:
    """Return a table of the times of each case."""
    return [_speeds(report, case) for case in report.cases if case.timings]


def _speeds(report: BenchReport, case: Case) -> Table:
    errors = {engine.name: engine.error for engine in report.contestants if engine.error}
    totals = {name: median_total(case, name) for name in case.timings if name not in errors}
    fastest = min(totals, key=totals.__getitem__, default="")
    rows = [
        _Speed(name, timing, report.quality.get(name), name == fastest, errors.get(name, ""))
        for name, timing in case.timings.items()
    ]
    metric = next((quality.metric for quality in report.quality.values()), "")
    columns: list[Column[_Speed]] = [
        Column("engine", lambda row: row.label, ""),
        Column(
            "total, ms", lambda row: Cell(milliseconds(statistics.median(row.timing.total)), best=row.fastest), "ms"
        ),
        Column("ms/token", lambda row: milliseconds(row.timing.per_token), "/token"),
        Column("tokens/s", lambda row: number(row.timing.tokens_per_second)),
        Column("speed-up", lambda row: interval(row.timing.ratio, 2), "speed-up"),
        Column("of the roofline, %", lambda row: percent(row.timing.floor), "roof %"),
        Column("identical, %", lambda row: percent(row.timing.identical), "same %"),
        Column("spread, %", lambda row: percent(row.timing.spread)),
        Column(metric, lambda row: f"{row.quality.score.value:.1f}" if row.quality else NONE, metric),
        Column("same texts, %", lambda row: percent(row.quality.identical if row.quality else None)),
        Column("first token, ms", lambda row: milliseconds(_median(row.timing.first)), None if metric else "first, ms"),
    ]
    note = (
        "Medians of rounds; bold is the fastest. Speed-up: over the first row, within a round, with its 95 % interval. "
        "Of the roofline: the time to read a step's weights from the memory that they lie in (cache or DRAM), over the "
        "measured time of a step; the kernel may exceed it, since it does not read the whole head. "
        f"Identical: rows with the same tokens as {report.reference}, at a forced number of tokens. "
        "The score and “same texts” are measured on real rows at their natural length. "
        "Spread: interquartile range over median."
    )
    return Table.of(case.label.capitalize(), columns, rows, note=note if case is report.cases[0] else "").filled()


def _failures(report: BenchReport) -> list[Table]:
    columns: list[Column[EngineReport]] = [
        Column("engine", lambda engine: engine.name),
        Column("reason", lambda engine: engine.error),
    ]
    failed = [engine for engine in report.contestants if engine.error]
    return [Table.of("Failed", columns, failed, words=2)] if failed else []


def quality(report: BenchReport) -> list[Table]:
    """Return the table of scores on real rows, or nothing if none were scored."""
    rows = [
        (engine.name, report.quality[engine.name]) for engine in report.contestants if engine.name in report.quality
    ]
    if not rows:
        return []
    first = rows[0][1]
    columns: list[Column[tuple[str, Quality]]] = [
        Column("engine", lambda row: row[0], ""),
        Column(first.metric, lambda row: interval(row[1].score, 1), first.metric),
        Column("difference from the reference", lambda row: interval(row[1].difference, 1, "+"), "difference"),
        Column("identical, %", lambda row: percent(row[1].identical), "identical, %"),
        Column("tokens", lambda row: f"{row[1].tokens:.1f}"),
        Column("rows/s", lambda row: number(row[1].rows / row[1].seconds if row[1].seconds else None), "rows/s"),
    ]
    note = (
        f"The reference is {report.reference}. Differences are paired; brackets are 95 % intervals. "
        "Identical: texts that equal the reference's. Tokens: mean length of an answer."
    )
    return [Table.of(f"Answers to {first.rows:,} rows", columns, rows, note=note)]


def is_knee(offered: float, knee: float | None) -> bool:
    """Return whether a load is the knee. Both were read from JSON, so they are compared with a tolerance."""
    return knee is not None and math.isclose(offered, knee, rel_tol=1e-6)


@dataclass(frozen=True)
class _Served:
    """One row of the serving table: an engine under one load."""

    name: str
    load: Load
    knee: bool


def serving(report: BenchReport) -> list[Table]:
    """Return the table of requests under load, or nothing if no load was offered."""
    rows = [
        _Served(engine.name, load, is_knee(load.offered, report.serving[engine.name].knee))
        for engine in report.contestants
        if engine.name in report.serving
        for load in report.serving[engine.name].loads
    ]
    if not rows:
        return []
    columns: list[Column[_Served]] = [
        Column("engine", lambda row: row.name, ""),
        Column(
            "offered/s",
            lambda row: Cell(number(row.load.offered), "the knee" if row.knee else "", row.knee),
            "offered/s",
        ),
        Column("answered/s", lambda row: number(row.load.answered), "answered/s"),
        Column("good/s", lambda row: number(row.load.goodput), "good/s"),
        Column("p50", lambda row: percentile_cell(row.load.percentiles, "p50"), "p50, ms"),
        Column("p90", lambda row: percentile_cell(row.load.percentiles, "p90"), "p90, ms"),
        Column("p99", lambda row: percentile_cell(row.load.percentiles, "p99")),
        Column("batch", lambda row: f"{row.load.batch:.1f}", "batch"),
    ]
    note = (
        "Latency in ms, from arrival to answer. Batch: mean number of requests answered together. "
        "Bold is the knee: the largest load that the engine keeps up with, within the SLO."
    )
    if settings := report.suite.serving:
        setup = f"{settings.requests:,} requests at each load, up to {settings.max_batch} together"
        note = f"{setup}, SLO {settings.slo:g} s. {note}"
    return [Table.of("Requests under load", columns, rows, note=note)]


def knees(report: BenchReport) -> list[str]:
    """Return a sentence for each engine with the largest load at which nine of ten answers come within the SLO."""
    slo = report.suite.serving.slo if report.suite.serving else math.nan
    return [
        f"{name} keeps nine of ten answers within {slo:g} s up to "
        + (f"{service.knee:.2f} requests/s" if service.knee else "none of these loads")
        for name, service in report.serving.items()
    ]


def _loading(report: BenchReport) -> list[Table]:
    columns: list[Column[EngineReport]] = [
        Column("engine", lambda engine: engine.name),
        Column("files, MB", lambda engine: number(engine.megabytes)),
        Column("import, s", lambda engine: number(engine.imports)),
        Column("cold load, s", lambda engine: number(engine.cold)),
        Column("warm load, s", lambda engine: number(engine.warm)),
        Column("weights in", lambda engine: engine.weights_in or NONE),
        Column("steps by", lambda engine: _engine(engine.steps_by)),
        Column("encoder by", lambda engine: _engine(engine.encoder_by)),
        Column("peak, MB", lambda engine: number(engine.peak)),
        Column("steady, MB", lambda engine: number(engine.steady)),
    ]
    note = "Cold and warm: with the model's files out of and in the file cache. Steady: resident after all timings. "
    note += "Weights in: the memory from which a step reads its weights."
    table = Table.of("Loading and memory", columns, report.contestants, note=note).filled()
    return [table] if len(table.columns) > 1 else []


def _engine(way: str | None) -> Cell:
    """Return the name of what computes a part of an engine, with the reason as a hint."""
    return Cell((way or NONE).split(":")[0], hint=way or "")


def _details(report: BenchReport, case: Case) -> Table:
    columns: list[Column[tuple[str, Timing]]] = [
        Column("engine", lambda row: row[0]),
        Column("p50, ms", lambda row: percentile_cell(row[1].percentiles, "p50")),
        Column("p90, ms", lambda row: percentile_cell(row[1].percentiles, "p90")),
        Column("p99, ms", lambda row: percentile_cell(row[1].percentiles, "p99")),
        Column("encoder, ms", lambda row: milliseconds(_median(row[1].encoder))),
        Column("CPU, s", lambda row: number(_median(row[1].cpu))),
        Column("joules", lambda row: number(_median(row[1].joules))),
    ]
    note = (
        f"Percentiles are of the total time; “{NONE}” means too few samples. "
        "The other columns are medians of rounds; CPU is the sum over all cores."
    )
    shown = note if case is report.cases[0] else ""
    return Table.of(case.label.capitalize(), columns, list(case.timings.items()), note=shown).filled()


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _environment(report: BenchReport) -> Table:
    columns: list[Column[tuple[str, str]]] = [
        Column("fact", lambda fact: fact[0]),
        Column("value", lambda fact: fact[1]),
    ]
    environment = {**report.environment, "seed": str(report.suite.seed)}
    return Table.of("Machine and versions", columns, list(environment.items()), words=2)


def method(report: BenchReport) -> list[str]:
    """Return how the benchmark was measured, in paragraphs."""
    required = ", ".join(f"{needed(share)} for {name}" for name, share in SHARES.items())
    return [
        "Each engine runs in its own process, which is paused while other engines run. Every engine has one turn in "
        "each round, in an order drawn from the seed. A temporary slowdown of the machine therefore affects all "
        "engines alike.",
        "Ratios are computed within a round. Tables show their median, with a 95 % bootstrap interval over rounds.",
        f"A percentile is shown only with the number of samples that MLPerf's rules require: {required}.",
        f"The harness took {duration(report.harness.seconds)}, {100 * report.harness.share:.2g} % of the time of all "
        "timed calls.",
    ]


def changes(comparison: Sequence[Change]) -> Table:
    """Return the table of the figures that both reports have."""
    columns: list[Column[Change]] = [
        Column("engine and case", lambda change: change.subject, "new over old"),
        Column("figure", lambda change: change.figure, "figure"),
        Column("ratio", lambda change: f"{change.ratio.value:.3f}", "ratio"),
        Column("95 %", lambda change: f"[{change.ratio.low:.3f}, {change.ratio.high:.3f}]", "95 %"),
        Column("", lambda change: "worse" if change.worse else "", ""),
    ]
    return Table.of("", columns, comparison)


def recipes(report: TrainingReport) -> Table:
    """Return the table of a training benchmark: a column for each recipe, within 80 columns of the terminal."""
    figures = [(name, [Cell(show(recipe)) for recipe in report.recipes.values()]) for name, show in _FIGURES.items()]
    rows = [[Cell(name), *cells] for name, cells in figures if any(cell.text for cell in cells)]
    return Table("", (f"{report.steps} steps of {report.batch} rows", *report.recipes), rows)


def _speed_up(recipe: Recipe) -> str:
    return interval(recipe.ratio, 2 if recipe.ratio.high < 10 else 1)


_FIGURES: dict[str, Callable[[Recipe], str]] = {
    "computes in": lambda recipe: f"{recipe.precision}{', compiled' * recipe.compiled}",
    "samples/s": lambda recipe: f"{recipe.samples_per_second:.2f}",
    "tokens/s": lambda recipe: f"{recipe.tokens_per_second:,.0f}",
    "padding": lambda recipe: f"{recipe.padding:.1%}",
    "seconds/step": lambda recipe: f"{recipe.seconds_per_step:.3f}",
    "speed-up [95 %]": _speed_up,
    "spread of rounds": lambda recipe: f"{recipe.spread:.1%}",
    "seconds to start": lambda recipe: f"{recipe.start:.1f}",
    "peak memory, MB": lambda recipe: "" if recipe.memory is None else f"{recipe.memory:,.0f}",
    "peak GPU, MB": lambda recipe: "" if recipe.gpu_memory is None else f"{recipe.gpu_memory:,.0f}",
    "loss, first and last": lambda recipe: f"{recipe.loss[0]:.3f} {recipe.loss[-1]:.3f}",
}
