"""The charts of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from operator import attrgetter

import numpy as np

from lora_ft.bench import tables
from lora_ft.bench.formatting import interval, milliseconds, number, percent
from lora_ft.bench.report import BenchReport, Case, Load
from lora_ft.bench.tables import SHARES, median_total
from lora_ft.reports.svg import Axis, Plot, Point, Rule, Series

_WIDE = 5  # values that span a larger factor are drawn on a logarithmic axis


def charts(report: BenchReport) -> dict[str, list[Plot]]:
    """Return all charts by the heading of `tables` that they belong to; headings without charts are left out."""
    plots_by_heading = {
        tables.SUMMARY: [*_latencies(report), *_rooflines(report)],
        tables.QUALITY: _quality(report),
        tables.SERVING: _serving(report),
        tables.DETAILS: [_distribution(report, case) for case in report.cases if case.timings],
    }
    return {heading: plots for heading, plots in plots_by_heading.items() if plots}


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point dominates in both coordinates, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def _styles(report: BenchReport) -> dict[str, int]:
    """Return the number of each engine's style, so that an engine looks the same in all charts."""
    return {contestant.name: number for number, contestant in enumerate(report.contestants)}


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > _WIDE * min(values)


def _latencies(report: BenchReport) -> list[Plot]:
    """Return total time against batch size: one chart for each pair of lengths, decoding and number of threads."""
    threads = {contestant.name: contestant.threads for contestant in report.contestants}
    groups: dict[tuple[int, int, str, int], list[Case]] = {}
    for case in report.cases:
        for count in sorted({threads[name] for name in case.timings if name in threads}):
            groups.setdefault((case.source, case.new, case.decoding, count), []).append(case)
    plots = []
    for (source, new, decoding, count), cases in groups.items():
        batches = sorted({case.batch for case in cases})
        series = [
            Series(
                name, [_total(case, name) for case in sorted(cases, key=lambda c: c.batch) if name in case.timings], at
            )
            for name, at in _styles(report).items()
            if threads[name] == count
        ]
        if len(batches) < 2:
            continue
        plots.append(
            Plot(
                f"Latency: {source} tokens in, {new} out, {decoding}, {count} thread{'s' if count > 1 else ''}",
                Axis("batch", log=True, ticks=tuple(batches)),
                Axis("total, ms", log=True),
                series,
                note="Medians of rounds; bars are their quartiles.",
            )
        )
    return plots


def _total(case: Case, name: str) -> Point:
    low, high = (1000 * float(value) for value in np.percentile(case.timings[name].total, [25, 75]))
    hint = f"{name}, batch {case.batch}: {milliseconds(median_total(case, name))} ms"
    return Point(case.batch, 1000 * median_total(case, name), low, high, hint)


def _rooflines(report: BenchReport) -> list[Plot]:
    """Return measured time of a token against the roofline: one chart for each pair of lengths and decoding."""
    groups: dict[tuple[int, int, str], list[Case]] = {}
    for case in report.cases:
        groups.setdefault((case.source, case.new, case.decoding), []).append(case)
    plots = (_roofline(report, cases) for cases in groups.values())
    return [plot for plot in plots if any(entry.points for entry in plot.series)]


def _roofline(report: BenchReport, cases: Sequence[Case]) -> Plot:
    series = [
        Series(
            name,
            [
                Point(
                    1000 * timing.floor * timing.per_token,
                    1000 * timing.per_token,
                    hint=f"{name}, batch {case.batch}: {percent(timing.floor)} % of the roofline",
                    label=str(case.batch),
                )
                for case in cases
                if (timing := case.timings.get(name)) and timing.floor
            ],
            at,
            line=False,
        )
        for name, at in _styles(report).items()
    ]
    floors = [point.x for entry in series for point in entry.points]
    # All points are compared with the line of 100 %, so it is always in view, even far below the points.
    y = Axis("measured, ms/token", log=True, include=(min(floors, default=1.0),))
    rules = [Rule(f"{share} %", 100 / share, diagonal=True) for share in (100, 50, 25)]
    note = (
        "The roofline is the time to read the weights of a step at the measured bandwidth. Lines connect equal shares "
        "of it; at 100 % a step waits for memory only. Numbers are batch sizes."
    )
    title = f"Time of a token and roofline: {cases[0].source} tokens in, {cases[0].new} out, {cases[0].decoding}"
    return Plot(title, Axis("roofline, ms/token", log=True), y, series, rules, note)


def _quality(report: BenchReport) -> list[Plot]:
    """Return the score against the speed, with the Pareto front."""
    speeds = {name: quality.rows / quality.seconds for name, quality in report.quality.items() if quality.seconds}
    if not speeds:
        return []
    entries = [
        Series(name, [Point(speeds[name], score.value, score.low, score.high, hint, label=name)], at, line=False)
        for name, at in _styles(report).items()
        if name in speeds
        for score in (report.quality[name].score,)
        for hint in (f"{name}: {interval(score, 1)} at {number(speeds[name])} rows/s",)
    ]
    failed = {contestant.name for contestant in report.contestants if contestant.error}
    best = pareto((point.x, point.y) for entry in entries if entry.name not in failed for point in entry.points)
    steps = [Point(x, y, bare=True) for x, y in best[:1]]
    for (before, _), (to, level) in pairwise(best):
        steps += [Point(before, level, bare=True), Point(to, level, bare=True)]
    series = [*([Series("Pareto front", steps)] if len(best) > 1 else []), *entries]
    metric = next(iter(report.quality.values())).metric
    note = (
        "Bars are 95 % intervals. The line is the Pareto front: no engine beats an engine on it in both score and "
        "speed."
    )
    x = Axis("speed, rows/s", log=_wide(list(speeds.values())))
    return [Plot("Quality against speed", x, Axis(metric), series, note=note)]


def _distribution(report: BenchReport, case: Case) -> Plot:
    """Return the cumulative distribution of total times, with the percentiles that have enough samples."""
    series = []
    for name, at in _styles(report).items():
        if name not in case.timings:
            continue
        timing = case.timings[name]
        ordered = [1000 * value for value in sorted(timing.total)]
        steps = [Point(ordered[0], 0, bare=True)]
        for count, value in enumerate(ordered, 1):
            steps += [Point(value, steps[-1].y, bare=True), Point(value, 100 * count / len(ordered), bare=True)]
        for key, share in SHARES.items():
            value = getattr(timing.percentiles, key)
            if value is not None:
                # The line passes through this point, so it is inserted before the first point of at least its height.
                mark = Point(1000 * value, 100 * share, hint=f"{name}, {key}: {milliseconds(value)} ms")
                index = next((i for i, p in enumerate(steps) if p.y >= mark.y), len(steps))
                steps.insert(index, mark)
        series.append(Series(name, steps, at))
    values = [point.x for entry in series for point in entry.points]
    note = "Markers are p50, p90 and p99, if there are enough samples."
    y = Axis("rounds within that time, %", include=(0.0, 100.0), ticks=(0, 25, 50, 75, 90, 100))
    return Plot(case.label.capitalize(), Axis("total, ms", log=_wide(values)), y, series, note=note)


def _serving(report: BenchReport) -> list[Plot]:
    """Return latency and goodput against the offered load."""
    suite = report.suite.serving
    rules = [Rule(f"SLO {1000 * suite.slo:,g} ms", 1000 * suite.slo)] if suite else []
    ring = "A ring marks the knee: the largest load that the engine keeps up with, within the SLO."
    x = Axis("offered, requests/s")
    plots = []
    for key in ("p50", "p90"):
        series = _loads(report, attrgetter(f"percentiles.{key}"), 1000, "ms")
        title = f"Latency under load, {key}"
        plots.append(Plot(title, x, Axis(f"{key} from arrival to answer, ms", log=True), series, rules, ring))
    good = _loads(report, attrgetter("goodput"), 1, "good answers/s")
    even = [Rule("all within the SLO", 1.0, diagonal=True)]
    y = Axis("answers within the SLO, 1/s", include=(0.0,))
    plots.append(Plot("Goodput under load", x, y, good, even, ring))
    return [plot for plot in plots if any(entry.points for entry in plot.series)]


def _loads(report: BenchReport, figure: Callable[[Load], float | None], times: float, unit: str) -> list[Series]:
    return [
        Series(
            name,
            [
                Point(
                    load.offered,
                    times * value,
                    hint=f"{name} at {number(load.offered)} requests/s: {number(times * value)} {unit}",
                    ring=tables.is_knee(load.offered, service.knee),
                )
                for load in service.loads
                if (value := figure(load)) is not None
            ],
            at,
        )
        for name, at in _styles(report).items()
        if (service := report.serving.get(name))
    ]
