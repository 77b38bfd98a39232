"""Figures as text, and which of them stand in which table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.bench.report import Interval, Percentiles
from lora_ft.bench.tables import (
    DETAILS,
    LOADING,
    NONE,
    QUALITY,
    SERVING,
    SUMMARY,
    Cell,
    Table,
    duration,
    interval,
    number,
    percent,
    percentile_cells,
    sections,
    warnings,
)
from tests.lora_ft.bench.reports import AWKWARD, broken, complete


@given(st.floats(1e-6, 1e9))
def test_numbers_keep_their_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_numbers() -> None:
    shown = [number(v) for v in (0, 0.0123, 0.9996, 9.996, 12.34, 999.7, 1234.6, None, math.nan, math.inf)]
    assert shown == ["0", "0.0123", "1.00", "10.0", "12.3", "1,000", "1,235", NONE, NONE, NONE]


def test_only_all_is_100_percent() -> None:
    assert [percent(v) for v in (1.0, 0.99996, 0.5, 0.0, 1.2, None)] == ["100.0", "99.9", "50.0", "0.0", "120.0", NONE]


def test_intervals_and_durations() -> None:
    assert interval(Interval(value=1, low=-0.5, high=2), 1, "+") == "+1.0 [-0.5, +2.0]"
    assert interval(None, 1) == NONE
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 7325)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 2 min",
    ]


def test_a_percentile_of_too_few_samples_says_how_many_it_asks_for() -> None:
    cells = percentile_cells(Percentiles(samples=11, p50=0.25, p90=None, p99=None))
    assert cells == [
        Cell("250"),
        Cell(NONE, "11 samples, 64 are asked for"),
        Cell(NONE, "11 samples, 662 are asked for"),
    ]


def test_columns_without_anything_are_left_out() -> None:
    table = Table("t", ("a", "b", "c"), [[Cell("x"), Cell(NONE), Cell(NONE, "why")]]).filled()
    assert table.columns == ["a", "c"] and table.rows == [[Cell("x"), Cell(NONE, "why")]]


def test_a_complete_report_has_all_tables() -> None:
    report = complete()
    found = sections(report)
    assert all(len(row) == len(table.columns) for tables in found.values() for table in tables for row in table.rows)
    for case, table in zip(report.cases, found[SUMMARY], strict=True):
        assert [row[0].text for row in table.rows] == list(AWKWARD)
        fastest = min(AWKWARD, key=lambda name: sorted(case.timings[name].total)[5])
        assert [row[0].text for row in table.rows if row[0].best] == [fastest]
    assert len(found[QUALITY][0].rows) == 3 and len(found[SERVING][0].rows) == 18
    knees = {row[0].text: row[1].text for row in found[SERVING][0].rows if row[1].best}
    assert knees == {name: number(service.knee) for name, service in report.serving.items()}
    assert "cold load, s" in found[LOADING][0].columns
    assert "joules" not in found[DETAILS][0].columns and "encoder, ms" in found[DETAILS][0].columns


def test_what_failed_is_named_and_is_never_the_fastest() -> None:
    report = broken()
    found = sections(report)
    assert QUALITY not in found and SERVING not in found
    speeds, failed = found[SUMMARY]
    assert [row[0].text for row in speeds.rows] == ["onnx/fp32", "onnx/int8 (failed)"]
    assert [row[0].best for row in speeds.rows] == [True, False]
    assert [row[1].text for row in failed.rows] == [one.error for one in report.contestants if one.error]
    assert warnings(report)[0].startswith("It was stopped") and warnings(report)[1:] == report.warnings


def test_a_report_of_nothing_still_has_its_environment() -> None:
    empty = broken().model_copy(update={"cases": [], "contestants": []})
    assert list(sections(empty)) == ["Environment"]
