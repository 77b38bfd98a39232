"""Tables of a report and their cells."""

from __future__ import annotations

from lora_ft.bench.formatting import number
from lora_ft.bench.report import Percentiles
from lora_ft.bench.tables import DETAILS, LOADING, QUALITY, SERVING, SUMMARY, percentile_cell, sections, warnings
from lora_ft.reports.table import NONE, Cell
from tests.lora_ft.bench.reports import AWKWARD, broken, complete


def test_percentile_of_too_few_samples_shows_the_required_number() -> None:
    percentiles = Percentiles(samples=11, p50=0.25, p90=None, p99=None)
    assert [percentile_cell(percentiles, name) for name in ("p50", "p90", "p99")] == [
        Cell("250"),
        Cell(NONE, "11 samples of the 64 required"),
        Cell(NONE, "11 samples of the 662 required"),
    ]


def test_complete_report_has_all_tables() -> None:
    report = complete()
    tables_by_heading = sections(report)
    assert all(
        len(row) == len(table.columns)
        for tables in tables_by_heading.values()
        for table in tables
        for row in table.rows
    )
    for case, table in zip(report.cases, tables_by_heading[SUMMARY], strict=True):
        assert [row[0].text for row in table.rows] == list(AWKWARD)
        fastest = min(AWKWARD, key=lambda name: sorted(case.timings[name].total)[5])
        assert [row[0].text for row in table.rows if row[0].best] == [fastest]
    assert len(tables_by_heading[QUALITY][0].rows) == 3 and len(tables_by_heading[SERVING][0].rows) == 18
    knees = {row[0].text: row[1].text for row in tables_by_heading[SERVING][0].rows if row[1].best}
    assert knees == {name: number(service.knee) for name, service in report.serving.items()}
    assert "cold load, s" in tables_by_heading[LOADING][0].columns
    assert (
        "joules" not in tables_by_heading[DETAILS][0].columns and "encoder, ms" in tables_by_heading[DETAILS][0].columns
    )


def test_failed_engine_is_listed_and_never_the_fastest() -> None:
    report = broken()
    tables_by_heading = sections(report)
    assert QUALITY not in tables_by_heading and SERVING not in tables_by_heading
    speeds, failed = tables_by_heading[SUMMARY]
    assert [row[0].text for row in speeds.rows] == ["onnx/fp32", "onnx/int8 (failed)"]
    assert [row[0].best for row in speeds.rows] == [True, False]
    assert [row[1].text for row in failed.rows] == [engine.error for engine in report.contestants if engine.error]
    assert warnings(report)[0].startswith("The benchmark was interrupted") and warnings(report)[1:] == report.warnings


def test_empty_report_has_its_environment() -> None:
    empty = broken().model_copy(update={"cases": [], "contestants": []})
    assert list(sections(empty)) == ["Environment"]
