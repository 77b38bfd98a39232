"""The page of a report: complete, self-contained, and correct in a narrow and a wide browser window."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.bench import html
from lora_ft.bench.report import BenchReport
from lora_ft.bench.tables import sections
from tests.lora_ft.bench.reports import AWKWARD, broken, complete
from tests.lora_ft.reports.browser import (
    WIDTHS,
    measure,
    require_drawn,
    require_nothing_loaded,
    require_self_contained,
    require_uncut,
)

MANY = [f"engine{at // 3}/{kind}" for at, kind in enumerate(("fp32", "int8", "int8-w4") * 4)]
REPORTS: dict[str, Callable[[], BenchReport]] = {
    "complete": complete,
    "broken": broken,
    "long": lambda: complete([name * 3 for name in AWKWARD], (1, 2, 4, 8)),
    "many": lambda: complete(MANY, (1, 8, 16), (128,), 70),
}


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the browser's measurements of every report, by "NAME WIDTH", and its console messages."""
    return measure(tmp_path_factory.mktemp("page"), {name: html.render(make()) for name, make in REPORTS.items()})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_browser_shows_everything_uncut(browsed: dict[str, Any], name: str, width: int) -> None:
    measured, report = browsed[f"{name} {width}"], REPORTS[name]()
    tables = [table for group in sections(report).values() for table in group]
    require_uncut(measured, width)
    assert measured["tables"] == [[table.title, len(table.rows)] for table in tables]
    assert measured["charts"] >= 2


def test_browser_loads_and_runs_nothing(browsed: dict[str, Any]) -> None:
    require_nothing_loaded(browsed)


def test_browser_draws_the_page(tmp_path: Path) -> None:
    require_drawn(tmp_path, html.render(complete()))


@pytest.mark.parametrize("report", [make() for make in REPORTS.values()], ids=REPORTS)
def test_page_is_well_formed_and_self_contained(report: BenchReport) -> None:
    text = html.render(report)
    require_self_contained(text, levels={2})
    assert not re.search(r"https?:", text)


def test_header_shows_verdict_and_warnings() -> None:
    text = html.render(broken())
    assert 'class="badge unstable"' in text and "The benchmark was interrupted" in text
    assert "no kernel for bf16 | exit code 1" in text and "&lt;RuntimeError&gt;" in text
    assert "warnings" not in html.render(complete()).partition("<body>")[2]


def test_missing_percentile_has_a_hint() -> None:
    assert '<td title="11 samples of the 64 required">–</td>' in html.render(complete())
