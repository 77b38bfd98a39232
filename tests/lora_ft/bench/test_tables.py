"""Figures as text, and which of them stand in which table."""

from __future__ import annotations

from lora_ft.bench.formatting import number
from lora_ft.bench.report import Percentiles
from lora_ft.bench.tables import DETAILS, LOADING, QUALITY, SERVING, SUMMARY, percentile_cell, sections, warnings
from lora_ft.reports.table import NONE, Cell
from tests.lora_ft.bench.reports import AWKWARD, broken, complete


def test_a_percentile_of_too_few_samples_says_how_many_it_asks_for() -> None:
    percentiles = Percentiles(samples=11, p50=0.25, p90=None, p99=None)
    assert [percentile_cell(percentiles, name) for name in ("p50", "p90", "p99")] == [
        Cell("250"),
        Cell(NONE, "11 samples of the 64 required"),
        Cell(NONE, "11 samples of the 662 required"),
    ]


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
    assert warnings(report)[0].startswith("The benchmark was interrupted") and warnings(report)[1:] == report.warnings


def test_a_report_of_nothing_still_has_its_environment() -> None:
    empty = broken().model_copy(update={"cases": [], "contestants": []})
    assert list(sections(empty)) == ["Environment"]
