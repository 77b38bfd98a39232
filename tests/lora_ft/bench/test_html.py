"""The page: complete, self-contained, and opened in a browser, narrow and wide."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lora_ft.bench import html
from lora_ft.bench.report import BenchReport
from lora_ft.bench.tables import sections
from tests.lora_ft.bench.reports import AWKWARD, broken, complete

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WIDTHS = (400, 1200)
MANY = [f"engine{at // 3}/{kind}" for at, kind in enumerate(("fp32", "int8", "int8-w4") * 4)]
REPORTS: dict[str, Callable[[], BenchReport]] = {
    "complete": complete,
    "broken": broken,
    "long": lambda: complete([name * 3 for name in AWKWARD], (1, 2, 4, 8)),
    "many": lambda: complete(MANY, (1, 8, 16), (128,), 70),
}


# Headless browsers have windows of 500 pixels at least, but frames as narrow as one likes. The page itself stays as it
# is: a frame of the same origin is measured from outside.
_FRAME = '<iframe name="{name}" srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>'
_MEASURE = """
<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, wide = page.documentElement.clientWidth;
    const all = [...page.body.querySelectorAll("*")];
    const box = (e) => e.getBoundingClientRect();
    const say = (e) => e.tagName + ": " + e.textContent.trim().slice(0, 60);
    const charts = [...page.querySelectorAll("svg")];
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    found[frame.name] = {
      width: wide,
      scrolls: page.documentElement.scrollWidth,
      over: all.filter((e) => !e.closest("table") && box(e).right > wide + 0.5).map(say),
      loose: [...page.querySelectorAll("table")].filter((e) => !e.closest(".scroll")).length,
      tables: [...page.querySelectorAll("table")].map((e) => [e.caption.textContent, e.tBodies[0].rows.length]),
      charts: charts.length,
      cut: charts.flatMap((svg) => [...svg.querySelectorAll("text")].filter((e) => {
        const a = box(e), b = box(svg);
        return a.left < b.left - 0.5 || a.right > b.right + 0.5 || a.bottom > b.bottom + 0.5 || a.top < b.top - 0.5;
      }).map(say)),
      touching: charts.flatMap((svg) => {
        const texts = [...svg.querySelectorAll("text")];
        const pairs = texts.flatMap((a, i) => texts.slice(i + 1).map((b) => [a, b]));
        return pairs.filter(([a, b]) => !apart(box(a), box(b))).map(([a, b]) => say(a) + "/" + say(b));
      }),
      flat: charts.filter((svg) => box(svg).height < 100).length,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name),
      scripts: page.scripts.length,
    };
  }
  document.documentElement.setAttribute("data-found", JSON.stringify(found));
});
</script>
"""


def _browse(folder: Path, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
        *(*arguments, file.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser made of every report at every width, by both, and what it told the console."""
    if BROWSER is None:
        pytest.skip("there is no Chromium or Chrome to open the page with")
    folder = tmp_path_factory.mktemp("page")
    frames = [
        _FRAME.format(name=f"{name} {width}", page=escape(html.render(make())), width=width)
        for name, make in REPORTS.items()
        for width in WIDTHS
    ]
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{_MEASURE}", encoding="utf-8")
    done = _browse(folder, file, "--window-size=1300,1000", "--dump-dom")
    measured = re.search(r'<html[^>]* data-found="([^"]*)"', done.stdout)
    assert measured, done.stderr[-2000:]
    return {**json.loads(unescape(measured[1])), "console": re.findall(r"CONSOLE.*", done.stderr)}


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
    if BROWSER is None:
        pytest.skip("there is no Chromium or Chrome to open the page with")
    file, image = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(html.render(complete()), encoding="utf-8")
    done = _browse(tmp_path, file, "--window-size=1200,1000", f"--screenshot={image}")
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr


class _Reader(HTMLParser):
    """Tags that are open, headings in order, and every attribute."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [make() for make in REPORTS.values()], ids=REPORTS)
def test_it_is_well_formed_and_needs_nothing_else(report: BenchReport) -> None:
    text = html.render(report)
    read = _Reader(text)
    assert read.open == [] and len(read.ids) == len(set(read.ids))
    assert read.levels[0] == 1 and read.levels.count(1) == 1 and set(read.levels[1:]) == {2}
    assert '<html lang="en">' in text and 'name="viewport"' in text and "default-src 'none'" in text
    names = {name for name, _ in read.attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "data"} and not any(n.startswith("on") for n in names)
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    numbers = " ".join(
        value for name, value in read.attributes if name in ("d", "x", "y", "cx", "cy", "transform", "viewbox")
    )
    assert not re.search("nan|inf", numbers, re.IGNORECASE)


def test_the_head_tells_what_a_reader_must_know() -> None:
    text = html.render(broken())
    assert 'class="badge unstable"' in text and "It was stopped" in text
    assert "no kernel for bf16 | exit code 1" in text and "&lt;RuntimeError&gt;" in text
    assert "warnings" not in html.render(complete()).partition("<body>")[2]


def test_a_missing_percentile_says_why() -> None:
    assert '<td title="11 samples, 64 are asked for">–</td>' in html.render(complete())
