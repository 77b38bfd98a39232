"""Reports are written, read and validated, and the committed schema is up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.bench.report import SCHEMA, BenchReport, schema
from lora_ft.core.errors import LoraFtError, UsageError
from tests.lora_ft.bench.reports import broken, complete


def test_committed_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema()


@pytest.mark.parametrize("make", [complete, broken])
def test_report_is_read_as_it_was_written(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    report = make()
    report.write(tmp_path / "report.json")
    assert BenchReport.read(tmp_path / "report.json") == report


def test_invalid_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(UsageError, match=r"report\.json: No such file"):
        BenchReport.read(path)
    complete().write(path)
    content = json.loads(path.read_text())
    for text, why in (
        ("{", "is not valid JSON"),
        ("[]", "version None"),
        (json.dumps(content | {"version": 2}), r"got version 2, supported: 1"),
        (json.dumps(content | {"bandwidth": "fast"}), "bandwidth = "),
        (json.dumps(content | {"more": 1}), "more = "),
    ):
        path.write_text(text)
        with pytest.raises(LoraFtError, match=why):
            BenchReport.read(path)
