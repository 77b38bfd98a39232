"""The tables of a report, as text: the page and the Markdown show the same figures because both come from here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import partial

from lora_ft.bench.report import BenchReport, Case, EngineReport, Interval, Percentiles
from lora_ft.bench.statistics import needed
from lora_ft.reports.table import NONE, Cell, Table

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

SUMMARY = "Summary"
QUALITY = "Quality"
SERVING = "Serving"
LOADING = "Loading, memory and size"
DETAILS = "Percentiles, parts and costs"
ENVIRONMENT = "Environment"


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits at least; whole numbers keep all of theirs."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def percent(share: float | None) -> str:
    """A share as a percentage without its sign, which stands above the column. Only what is whole is 100.0."""
    if share is None:
        return NONE
    text = f"{100 * share:.1f}"
    return "99.9" if text == "100.0" and share < 1 else text


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return NONE if seconds is None else number(1000 * seconds)


def interval(found: Interval | None, places: int, sign: str = "") -> str:
    """A value with its interval."""
    if found is None:
        return NONE
    value, low, high = (f"{v:{sign}.{places}f}" for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    """In the largest unit that it fills, and the next."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


def facts(report: BenchReport) -> list[str]:
    """When it was measured, for how long and with what."""
    suite = report.suite
    return [
        f"{report.began[:16].replace('T', ' ')} UTC",
        f"took {duration(report.seconds)}",
        f"{suite.rounds} rounds",
        " and ".join(suite.provider),
        f"reference {report.reference}",
        f"memory read at {report.bandwidth / 1e9:.1f} GB/s",
    ]


def warnings(report: BenchReport) -> list[str]:
    """What a reader must know before any figure."""
    stopped = ["It was stopped before the end: what is here was measured by then."] if report.interrupted else []
    return stopped + report.warnings


def name_of(case: Case) -> str:
    """A case in words."""
    return f"batch {case.batch}, {case.source} tokens in, {case.new} out, {case.decoding}"


def seconds_of(case: Case, name: str) -> float:
    """The median of the total of one contestant."""
    return statistics.median(case.timings[name].total)


def percentile_cells(found: Percentiles) -> list[Cell]:
    """p50, p90 and p99 in milliseconds; where there are too few samples, why there is none."""
    return [
        Cell(milliseconds(value))
        if (value := getattr(found, name)) is not None
        else Cell(NONE, f"{found.samples:,} samples, {needed(share):,} are asked for")
        for name, share in SHARES.items()
    ]


def sections(report: BenchReport) -> dict[str, list[Table]]:
    """All tables by the heading that they stand under; headings without any are left out."""
    found = {
        SUMMARY: [*(_speeds(report, case) for case in report.cases if case.timings), *_failed(report)],
        QUALITY: _quality(report),
        SERVING: _serving(report),
        LOADING: _loading(report),
        DETAILS: [_details(report, case) for case in report.cases if case.timings],
        ENVIRONMENT: [_environment(report)],
    }
    return {heading: tables for heading, tables in found.items() if tables}


def _present(report: BenchReport, names: Iterable[str]) -> list[EngineReport]:
    known = set(names)
    return [contestant for contestant in report.contestants if contestant.name in known]


def _cells(*texts: str) -> list[Cell]:
    return [Cell(text) for text in texts]


def _speeds(report: BenchReport, case: Case) -> Table:
    errors = {contestant.name: contestant.error for contestant in report.contestants if contestant.error}
    fastest = min((name for name in case.timings if name not in errors), key=partial(seconds_of, case), default="")
    rows = [
        [
            Cell(f"{name} (failed)", errors[name]) if name in errors else Cell(name, "fastest" if best else "", best),
            Cell(milliseconds(seconds_of(case, name)), best=best),
            *_cells(
                milliseconds(timing.per_token),
                number(timing.tokens_per_second),
                interval(timing.ratio, 2),
                percent(timing.floor),
                percent(timing.identical),
                percent(timing.spread),
                f"{quality.score.value:.1f}" if quality else NONE,
                percent(quality.identical if quality else None),
            ),
        ]
        for name, timing in case.timings.items()
        for best, quality in [(name == fastest, report.quality.get(name))]
    ]
    columns = (
        "contestant",
        "total, ms",
        "ms/token",
        "tokens/s",
        "times as fast",
        "of the floor, %",
        "identical, %",
        "spread, %",
        _metric(report),
        "same texts, %",
    )
    note = (
        "Medians of rounds; bold is the fastest. Times as fast as the first row, within a round, with the 95 % "
        "interval. Of the floor: what reading the bytes of a step takes at least, over what the step took. "
        f"Identical: rows whose tokens are those of {report.reference}, here where the number of tokens is forced; the "
        "score and the same texts are of real rows at their natural length. Spread: interquartile range over median."
    )
    return Table(name_of(case).capitalize(), columns, rows, note=note if case is report.cases[0] else "").filled()


def _metric(report: BenchReport) -> str:
    return next((quality.metric for quality in report.quality.values()), "")


def _failed(report: BenchReport) -> list[Table]:
    rows = [_cells(contestant.name, contestant.error) for contestant in report.contestants if contestant.error]
    return [Table("Failed", ("contestant", "why"), rows, words=2)] if rows else []


def _quality(report: BenchReport) -> list[Table]:
    rows = [
        _cells(
            contestant.name,
            interval(found.score, 1),
            interval(found.difference, 1, "+"),
            percent(found.identical),
            f"{found.tokens:.1f}",
            number(found.rows / found.seconds if found.seconds else None),
        )
        for contestant in _present(report, report.quality)
        for found in (report.quality[contestant.name],)
    ]
    if not rows:
        return []
    one = next(iter(report.quality.values()))
    columns = ("contestant", one.metric, "against the reference", "identical, %", "tokens", "rows/s")
    note = (
        f"The reference is {report.reference}. Differences are paired; brackets are 95 % intervals. "
        "Identical: texts that are the reference's. Tokens: of an answer, in the mean."
    )
    return [Table(f"Answers to {one.rows:,} rows", columns, rows, note=note)]


def is_knee(offered: float, knee: float | None) -> bool:
    """Whether a load is the knee, which comes from the same list but through JSON."""
    return knee is not None and math.isclose(offered, knee, rel_tol=1e-6)


def _serving(report: BenchReport) -> list[Table]:
    rows = [
        [
            Cell(contestant.name),
            Cell(number(load.offered), "the knee" if knee else "", knee),
            *_cells(number(load.answered), number(load.goodput)),
            *percentile_cells(load.percentiles),
            Cell(f"{load.batch:.1f}"),
        ]
        for contestant in _present(report, report.serving)
        for load in report.serving[contestant.name].loads
        for knee in (is_knee(load.offered, report.serving[contestant.name].knee),)
    ]
    if not rows:
        return []
    note = (
        "Latency in ms, from arrival to answer. Batch: answered together, in the mean. "
        "Bold is the knee: the largest load that is kept up with, within the SLO."
    )
    if serving := report.suite.serving:
        asked = f"{serving.requests:,} requests at each load, up to {serving.max_batch} together"
        note = f"{asked}, SLO {serving.slo:g} s. {note}"
    columns = ("contestant", "offered/s", "answered/s", "good/s", *SHARES, "batch")
    return [Table("Requests under load", columns, rows, note=note)]


def _loading(report: BenchReport) -> list[Table]:
    rows = [
        _cells(c.name, *(number(v) for v in (c.megabytes, c.imports, c.cold, c.warm, c.peak, c.steady)))
        for c in report.contestants
    ]
    if all(cell.text == NONE for row in rows for cell in row[1:]):
        return []
    columns = ("contestant", "files, MB", "import, s", "cold load, s", "warm load, s", "peak, MB", "steady, MB")
    note = "Cold and warm: with the model's files out of and in the file cache. Steady: resident after all timings."
    return [Table("Before the first answer, and while it runs", columns, rows, note=note).filled()]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _details(report: BenchReport, case: Case) -> Table:
    rows = [
        [
            Cell(name),
            *percentile_cells(timing.percentiles),
            *_cells(milliseconds(_median(timing.first)), milliseconds(_median(timing.encoder))),
            *_cells(number(_median(timing.cpu)), number(_median(timing.joules))),
        ]
        for name, timing in case.timings.items()
    ]
    columns = ("contestant", *(f"{name}, ms" for name in SHARES), "first token, ms", "encoder, ms", "CPU, s", "joules")
    note = (
        f"Percentiles are of the total; “{NONE}” is one that there are too few samples for. "
        "The other columns are medians of rounds; CPU adds up all cores."
    )
    shown = note if case is report.cases[0] else ""
    return Table(name_of(case).capitalize(), columns, rows, note=shown).filled()


def _environment(report: BenchReport) -> Table:
    facts = {**report.environment, "seed": str(report.suite.seed)}
    return Table("The machine and what runs on it", ("fact", "value"), [_cells(*fact) for fact in facts.items()], 2)


def method(report: BenchReport) -> list[str]:
    """How it was measured, in paragraphs."""
    asked = ", ".join(f"{needed(share)} for {name}" for name, share in SHARES.items())
    return [
        "Each engine runs in a process of its own, which is paused while another's turn lasts. In every round each "
        "contestant has its turn, in an order drawn anew from the seed, so that what slows the machine for a while "
        "slows all of them.",
        "Ratios are taken within a round and given as their median, with the 95 % interval of medians of rounds drawn "
        "with replacement.",
        f"A percentile is given only where there are as many samples as MLPerf's rule asks for: {asked}.",
        f"The harness itself took {duration(report.harness.seconds)}, {100 * report.harness.share:.2g} % of the time "
        "of all timed calls.",
    ]
