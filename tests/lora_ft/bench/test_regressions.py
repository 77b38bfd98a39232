"""Two reports are compared by what both have; what became slower or worse, or is gone, is found."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.regressions import compare, later, missing
from lora_ft.bench.report import BenchReport, Interval
from lora_ft.bench.statistics import unpaired
from tests.lora_ft.bench.reports import complete as report


def slowed(found: BenchReport, name: str, factor: float) -> BenchReport:
    """As if one contestant had taken so many times as long."""
    cases = [
        case.model_copy(
            update={
                "timings": {
                    who: timing.model_copy(
                        update={key: [factor * value for value in getattr(timing, key)] for key in ("total", "first")}
                    )
                    if who == name
                    else timing
                    for who, timing in case.timings.items()
                }
            }
        )
        for case in found.cases
    ]
    return found.model_copy(update={"cases": cases})


def test_a_report_is_no_worse_than_itself() -> None:
    found = report()
    changes = compare(found, found, tolerance=0.0, max_drop=0.0)
    assert changes and not any(change.worse for change in changes)
    assert all(change.ratio.value in (0, 1) for change in changes)
    assert missing(found, found) == []


def test_what_became_slower_is_found_and_nothing_else() -> None:
    found = report()
    name = found.contestants[1].name
    changes = compare(found, slowed(found, name, 1.5), tolerance=0.1, max_drop=0.5)
    worse = [change for change in changes if change.worse]
    assert len(worse) == 2 * sum(name in case.timings for case in found.cases)
    assert all(change.what.startswith(name) and 1.45 < change.ratio.value < 1.55 for change in worse)
    assert not any(change.worse for change in compare(found, slowed(found, name, 1.5), tolerance=0.6, max_drop=0.5))
    assert not any(change.worse for change in compare(found, slowed(found, name, 0.5), tolerance=0.0, max_drop=0.5))


def test_a_score_that_fell_is_found() -> None:
    found = report()
    name, quality = next(iter(found.quality.items()))
    low = Interval(value=quality.score.value - 2, low=0, high=100)
    fallen = found.model_copy(update={"quality": found.quality | {name: quality.model_copy(update={"score": low})}})
    assert [c.what for c in compare(found, fallen, tolerance=1, max_drop=1.9) if c.worse] == [name]
    assert not any(c.worse for c in compare(found, fallen, tolerance=1, max_drop=2.1))


def test_who_is_gone_or_failed_is_missing() -> None:
    found = report()
    first, *others = found.contestants
    assert missing(found, found.model_copy(update={"contestants": others})) == [first.name]
    failed = first.model_copy(update={"error": "it died"})
    assert missing(found, found.model_copy(update={"contestants": [failed, *others]})) == [first.name]
    assert missing(found.model_copy(update={"contestants": [failed, *others]}), found) == []


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=20), st.floats(0.1, 10))
def test_the_ratio_of_reports_lies_in_its_interval(values: list[float], factor: float) -> None:
    found = unpaired(values, [factor * value for value in values], seed=0)
    assert np.isclose(found.value, factor)
    assert found.low <= found.value * (1 + 1e-9) and found.value <= found.high * (1 + 1e-9)


def test_later_tokens_are_what_comes_after_the_first() -> None:
    timing = next(iter(report().cases[0].timings.values()))
    assert later(timing) == [total - first for total, first in zip(timing.total, timing.first, strict=True)]
