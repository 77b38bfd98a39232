"""Checks of pages with a browser and a strict parser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTHS = (400, 1200)

# Windows of headless browsers are at least 500 pixels wide, so pages are measured in frames, which may be narrower. A
# frame of the same origin is measured from outside, so the page itself is unchanged.
_FRAME = '<iframe name="{name}" srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>'
_MEASURE = """
<script>
addEventListener("load", () => {
  const measured = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, wide = page.documentElement.clientWidth;
    const all = [...page.body.querySelectorAll("*")];
    const box = (e) => e.getBoundingClientRect();
    const say = (e) => e.tagName + ": " + e.textContent.trim().slice(0, 60);
    const charts = [...page.querySelectorAll("svg")];
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    measured[frame.name] = {
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
  document.documentElement.setAttribute("data-measured", JSON.stringify(measured));
});
</script>
"""


def require_browser() -> None:
    """Skip the test if no browser is installed."""
    if BROWSER is None:
        pytest.skip("Chromium or Chrome is not installed")


def browse(folder: Path, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
        *(*arguments, file.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


def measure(folder: Path, pages: Mapping[str, str]) -> dict[str, Any]:
    """Return what the browser measured in each page at each width, by "NAME WIDTH", and its console messages."""
    require_browser()
    frames = [
        _FRAME.format(name=f"{name} {width}", page=escape(page), width=width)
        for name, page in pages.items()
        for width in WIDTHS
    ]
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{_MEASURE}", encoding="utf-8")
    browser = browse(folder, file, "--window-size=1300,1000", "--dump-dom")
    match = re.search(r'<html[^>]* data-measured="([^"]*)"', browser.stdout)
    assert match, browser.stderr[-2000:]
    return {**json.loads(unescape(match[1])), "console": re.findall(r"CONSOLE.*", browser.stderr)}


def require_uncut(measured: Mapping[str, Any], width: int) -> None:
    """Assert that a page fits the window: nothing is cut off, wide tables scroll, and texts of charts do not touch."""
    assert measured["width"] <= width and measured["scrolls"] <= width
    assert measured["over"] == [] and measured["loose"] == 0 and measured["flat"] == 0
    assert measured["cut"] == [] and measured["touching"] == []


def require_nothing_loaded(measured: Mapping[str, Any]) -> None:
    """Assert that pages, as measured by `measure`, write no console message, and load and run nothing."""
    assert measured["console"] == []
    for name, page in measured.items():
        if name != "console":
            assert page["loaded"] == [] and page["scripts"] == 0


def require_drawn(folder: Path, page: str) -> None:
    """Assert that the browser draws a page without a console message."""
    require_browser()
    file, image = folder / "page.html", folder / "page.png"
    file.write_text(page, encoding="utf-8")
    browser = browse(folder, file, "--window-size=1200,1000", f"--screenshot={image}")
    assert image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 20_000
    assert "CONSOLE" not in browser.stderr


class _Reader(HTMLParser):
    """Parser that records open tags, headings in order, and all attributes."""

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


def require_self_contained(text: str, levels: set[int]) -> None:
    """Assert that a page is well formed, has one h1, and loads, links and runs nothing."""
    reader = _Reader(text)
    assert reader.open == [] and len(reader.ids) == len(set(reader.ids))
    assert reader.levels[0] == 1 and reader.levels.count(1) == 1 and set(reader.levels[1:]) <= levels
    assert '<html lang="en">' in text and 'name="viewport"' in text and "default-src 'none'" in text
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "data"} and not any(n.startswith("on") for n in names)
    assert not re.search(r"url\(|@import|<script|<link", text)
    numbers = " ".join(
        value for name, value in reader.attributes if name in ("d", "x", "y", "cx", "cy", "transform", "viewbox")
    )
    assert not re.search("nan|inf", numbers, re.IGNORECASE)
