"""The page of a report on servers: self-contained, and correct in a narrow and a wide browser window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.bench.serve_pages import charts, render_html
from lora_ft.bench.serve_report import ServeReport, Usage
from lora_ft.bench.serve_tables import sections
from tests.lora_ft.bench.test_serve_tables import REPORT, load, server
from tests.lora_ft.reports.browser import (
    WIDTHS,
    measure,
    require_drawn,
    require_nothing_loaded,
    require_self_contained,
    require_uncut,
)

LONG = "/opt/python/bin/python -P batch_server.py ctranslate2 int8 runs/serving/checkpoint runs/serving/" + "a" * 90


def many() -> ServeReport:
    """Return a report on eight servers with long names, each with eight loads."""
    servers = []
    for at in range(8):
        loads = [load(0.4 * 1.25**i * (at + 1), 0.1 + 0.2 * i) for i in range(7)]
        usage = [Usage(seconds=0.5 * i, cpu=1.5, megabytes=300.0 + at + i) for i in range(60)]
        loads.append(load(0.5, 0.3, profile="bursts", usage=usage, stopped=True, failed={500: 3}))
        knee = loads[4].model_copy(update={"usage": usage})
        name = f"Optimum int8 (wo and head fp32), batch {at}"
        measured = server(name, [*loads[:4], knee, *loads[5:]], knee.offered)
        servers.append(measured.model_copy(update={"source": LONG, "goodput": knee.goodput}))
    return REPORT.model_copy(update={"servers": servers, "interrupted": False, "warnings": [f"{LONG}: slow"]})


REPORTS: dict[str, Callable[[], ServeReport]] = {
    "usual": lambda: REPORT,
    "many": many,
    "failed": lambda: REPORT.model_copy(update={"servers": REPORT.servers[3:]}),
}


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the browser's measurements of every report, by "NAME WIDTH", and its console messages."""
    return measure(tmp_path_factory.mktemp("page"), {name: render_html(make()) for name, make in REPORTS.items()})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_browser_shows_everything_uncut(browsed: dict[str, Any], name: str, width: int) -> None:
    measured, report = browsed[f"{name} {width}"], REPORTS[name]()
    tables = [table for group in sections(report).values() for table in group]
    require_uncut(measured, width)
    assert measured["tables"] == [[table.title, len(table.rows)] for table in tables]
    assert measured["charts"] == len(charts(report))


def test_browser_loads_and_runs_nothing(browsed: dict[str, Any]) -> None:
    require_nothing_loaded(browsed)


def test_browser_draws_the_page(tmp_path: Path) -> None:
    require_drawn(tmp_path, render_html(many()))


@pytest.mark.parametrize("report", [make() for make in REPORTS.values()], ids=REPORTS)
def test_page_is_well_formed_and_self_contained(report: ServeReport) -> None:
    require_self_contained(render_html(report), levels={2})
