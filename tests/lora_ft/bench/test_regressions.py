"""Comparison of two reports: slower times, lower scores and missing engines are found."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.regressions import compare, later, missing
from lora_ft.bench.report import BenchReport, Interval
from lora_ft.bench.statistics import unpaired
from tests.lora_ft.bench.reports import complete as report


def slowed(old: BenchReport, name: str, factor: float) -> BenchReport:
    """Return the report with the times of one engine multiplied by `factor`."""
    cases = [
        case.model_copy(
            update={
                "timings": {
                    engine: timing.model_copy(
                        update={key: [factor * value for value in getattr(timing, key)] for key in ("total", "first")}
                    )
                    if engine == name
                    else timing
                    for engine, timing in case.timings.items()
                }
            }
        )
        for case in old.cases
    ]
    return old.model_copy(update={"cases": cases})


def test_report_is_not_worse_than_itself() -> None:
    old = report()
    changes = compare(old, old, tolerance=0.0, max_drop=0.0)
    assert changes and not any(change.worse for change in changes)
    assert all(change.ratio.value in (0, 1) for change in changes)
    assert missing(old, old) == []


def test_only_slower_engines_are_reported_as_worse() -> None:
    old = report()
    name = old.contestants[1].name
    changes = compare(old, slowed(old, name, 1.5), tolerance=0.1, max_drop=0.5)
    worse = [change for change in changes if change.worse]
    assert len(worse) == 2 * sum(name in case.timings for case in old.cases)
    assert all(change.subject.startswith(name) and 1.45 < change.ratio.value < 1.55 for change in worse)
    assert not any(change.worse for change in compare(old, slowed(old, name, 1.5), tolerance=0.6, max_drop=0.5))
    assert not any(change.worse for change in compare(old, slowed(old, name, 0.5), tolerance=0.0, max_drop=0.5))


def test_lower_score_is_reported_as_worse() -> None:
    old = report()
    name, quality = next(iter(old.quality.items()))
    low = Interval(value=quality.score.value - 2, low=0, high=100)
    fallen = old.model_copy(update={"quality": old.quality | {name: quality.model_copy(update={"score": low})}})
    assert [c.subject for c in compare(old, fallen, tolerance=1, max_drop=1.9) if c.worse] == [name]
    assert not any(c.worse for c in compare(old, fallen, tolerance=1, max_drop=2.1))


def test_absent_and_failed_engines_are_missing() -> None:
    old = report()
    first, *rest_of_engines = old.contestants
    assert missing(old, old.model_copy(update={"contestants": rest_of_engines})) == [first.name]
    failed = first.model_copy(update={"error": "it died"})
    assert missing(old, old.model_copy(update={"contestants": [failed, *rest_of_engines]})) == [first.name]
    assert missing(old.model_copy(update={"contestants": [failed, *rest_of_engines]}), old) == []


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=20), st.floats(0.1, 10))
def test_ratio_lies_within_its_interval(values: list[float], factor: float) -> None:
    estimate = unpaired(values, [factor * value for value in values], seed=0)
    assert np.isclose(estimate.value, factor)
    assert estimate.low <= estimate.value * (1 + 1e-9) and estimate.value <= estimate.high * (1 + 1e-9)


def test_later_is_the_time_after_the_first_token() -> None:
    timing = next(iter(report().cases[0].timings.values()))
    assert later(timing) == [total - first for total, first in zip(timing.total, timing.first, strict=True)]
