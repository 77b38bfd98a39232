"""Compare two reports and find figures that became worse by more than noise."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ft.bench.report import BenchReport, Interval, Timing
from lora_ft.bench.statistics import unpaired


@dataclass(frozen=True)
class Change:
    """One figure in both reports.

    Attributes:
        subject: Engine and case.
        figure: "total", "per token", or the metric of a score.
        ratio: For times: new over old, where more than 1 is slower. For scores: new minus old, in points.
        worse: True if the change exceeds the tolerance, and its interval excludes equality.
    """

    subject: str
    figure: str
    ratio: Interval
    worse: bool


def compare(old: BenchReport, new: BenchReport, *, tolerance: float, max_drop: float) -> list[Change]:
    """Return the changes of all figures that both reports have.

    Args:
        old, new: The reports.
        tolerance: Allowed growth of times, as a share.
        max_drop: Allowed loss of scores, in points.
    """
    seed = old.suite.seed
    changes = []
    cases = {(case.batch, case.source, case.new, case.decoding): case for case in old.cases}
    for case in new.cases:
        before = cases.get((case.batch, case.source, case.new, case.decoding))
        for name in case.timings.keys() & (before.timings.keys() if before else set()):
            assert before is not None
            subject = (
                f"{name}, batch {case.batch}, {case.source} in, {case.new} out, {case.decoding}"  # fits 80 columns
            )
            a, b = before.timings[name], case.timings[name]
            for figure, first, second in (("total", a.total, b.total), ("per token", later(a), later(b))):
                ratio = unpaired(first, second, seed)
                changes.append(Change(subject, figure, ratio, ratio.low > 1 and ratio.value > 1 + tolerance))
    for name in sorted(old.quality.keys() & new.quality.keys()):
        a_score, b_score = old.quality[name], new.quality[name]
        change = b_score.score.value - a_score.score.value
        changes.append(
            Change(name, b_score.metric, Interval(value=change, low=change, high=change), change < -max_drop)
        )
    return changes


def missing(old: BenchReport, new: BenchReport) -> list[str]:
    """Return the engines of the old report that are absent from the new one, or failed in it."""
    present = {engine.name for engine in new.contestants if not engine.error}
    return [engine.name for engine in old.contestants if not engine.error and engine.name not in present]


def later(timing: Timing) -> list[float]:
    """Return the time of all tokens after the first, in seconds, by round."""
    return [total - first for total, first in zip(timing.total, timing.first, strict=True)]
