"""Two reports against each other: what became slower, or worse, beyond what chance gives."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ft.bench.report import BenchReport, Interval, Timing
from lora_ft.bench.statistics import unpaired


@dataclass(frozen=True)
class Change:
    """One figure in both reports.

    Attributes:
        what: contestant and case.
        figure: "total", "per token", or the metric of a score.
        ratio: of times: new over old, above 1 is slower. Of scores: new minus old, in points.
        worse: beyond the tolerance, its interval included.
    """

    what: str
    figure: str
    ratio: Interval
    worse: bool


def compare(old: BenchReport, new: BenchReport, *, tolerance: float, max_drop: float) -> list[Change]:
    """Every figure that both have.

    Args:
        old, new: reports.
        tolerance: share by which times may grow.
        max_drop: points that scores may fall by.
    """
    seed = old.suite.seed
    found = []
    cases = {(case.batch, case.source, case.new, case.decoding): case for case in old.cases}
    for case in new.cases:
        before = cases.get((case.batch, case.source, case.new, case.decoding))
        for name in case.timings.keys() & (before.timings.keys() if before else set()):
            assert before is not None
            what = f"{name}, batch {case.batch}, {case.source} in, {case.new} out, {case.decoding}"  # fits 80 columns
            a, b = before.timings[name], case.timings[name]
            for figure, one, other in (("total", a.total, b.total), ("per token", later(a), later(b))):
                ratio = unpaired(one, other, seed)
                found.append(Change(what, figure, ratio, ratio.low > 1 and ratio.value > 1 + tolerance))
    for name in sorted(old.quality.keys() & new.quality.keys()):
        a_score, b_score = old.quality[name], new.quality[name]
        change = b_score.score.value - a_score.score.value
        found.append(Change(name, b_score.metric, Interval(value=change, low=change, high=change), change < -max_drop))
    return found


def missing(old: BenchReport, new: BenchReport) -> list[str]:
    """Contestants of the old report that the new one lacks, or in which they failed."""
    there = {one.name for one in new.contestants if not one.error}
    return [one.name for one in old.contestants if not one.error and one.name not in there]


def later(timing: Timing) -> list[float]:
    """Seconds of all tokens after the first, by round."""
    return [total - first for total, first in zip(timing.total, timing.first, strict=True)]
