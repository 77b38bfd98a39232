"""The page: complete, self-contained, and opened in a browser, narrow and wide."""

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
from tests.lora_ft.reports.browser import WIDTHS, browse, measure, require_browser, require_self_contained

MANY = [f"engine{at // 3}/{kind}" for at, kind in enumerate(("fp32", "int8", "int8-w4") * 4)]
REPORTS: dict[str, Callable[[], BenchReport]] = {
    "complete": complete,
    "broken": broken,
    "long": lambda: complete([name * 3 for name in AWKWARD], (1, 2, 4, 8)),
    "many": lambda: complete(MANY, (1, 8, 16), (128,), 70),
}


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser made of every report at every width, by both, and what it told the console."""
    return measure(tmp_path_factory.mktemp("page"), {name: html.render(make()) for name, make in REPORTS.items()})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_in_a_browser_all_is_there_and_nothing_is_cut(browsed: dict[str, Any], name: str, width: int) -> None:
    found, report = browsed[f"{name} {width}"], REPORTS[name]()
    tables = [table for some in sections(report).values() for table in some]
    assert found["width"] <= width and found["scrolls"] <= width
    assert found["over"] == [] and found["loose"] == 0
    assert found["tables"] == [[table.title, len(table.rows)] for table in tables]
    assert found["charts"] >= 2 and found["flat"] == 0
    assert found["cut"] == [] and found["touching"] == []


def test_in_a_browser_nothing_is_loaded_or_run_or_wrong(browsed: dict[str, Any]) -> None:
    assert browsed["console"] == []
    for name in REPORTS:
        assert browsed[f"{name} 400"]["loaded"] == [] and browsed[f"{name} 400"]["scripts"] == 0


def test_a_browser_draws_it(tmp_path: Path) -> None:
    require_browser()
    file, image = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(html.render(complete()), encoding="utf-8")
    done = browse(tmp_path, file, "--window-size=1200,1000", f"--screenshot={image}")
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("report", [make() for make in REPORTS.values()], ids=REPORTS)
def test_it_is_well_formed_and_needs_nothing_else(report: BenchReport) -> None:
    text = html.render(report)
    require_self_contained(text, levels={2})
    assert not re.search(r"https?:", text)


def test_the_head_tells_what_a_reader_must_know() -> None:
    text = html.render(broken())
    assert 'class="badge unstable"' in text and "The benchmark was interrupted" in text
    assert "no kernel for bf16 | exit code 1" in text and "&lt;RuntimeError&gt;" in text
    assert "warnings" not in html.render(complete()).partition("<body>")[2]


def test_a_missing_percentile_says_why() -> None:
    assert '<td title="11 samples of the 64 required">–</td>' in html.render(complete())
