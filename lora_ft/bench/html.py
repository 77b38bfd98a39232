"""A report as one self-contained HTML page, without scripts."""

from __future__ import annotations

from lora_ft.bench.charts import charts
from lora_ft.bench.report import BenchReport
from lora_ft.bench.tables import facts, method, sections, warnings
from lora_ft.reports.html import aside, document, escape, section, table
from lora_ft.reports.svg import STYLE, figures

_VERDICTS = {"stable": "Rounds agree.", "unstable": "Rounds disagree; see the warnings."}


def render(report: BenchReport) -> str:
    """Return the page."""
    plots = charts(report)
    body = [
        section(heading, [*map(table, tables), *figures(plots.get(heading, []))])
        for heading, tables in sections(report).items()
    ]
    body.append(section("How it was measured", [f"<p>{escape(text)}</p>" for text in method(report)]))
    return document(f"{report.suite.name}: benchmark", _header(report), body, STYLE)


def _header(report: BenchReport) -> list[str]:
    badge = f'<span class="badge {report.verdict}" title="{_VERDICTS[report.verdict]}">{report.verdict}</span>'
    parts = [f"<h1>{escape(report.suite.name)} {badge}</h1>"]
    if report.suite.about:
        parts.append(f"<p>{escape(report.suite.about)}</p>")
    parts.append(f'<p class="facts">{escape(" · ".join(facts(report)))}</p>')
    return [*parts, *aside(warnings(report))]
