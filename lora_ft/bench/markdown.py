"""A report as GitHub's Markdown: the tables of the page, without its charts."""

from __future__ import annotations

from lora_ft.bench.report import BenchReport
from lora_ft.bench.tables import facts, method, sections, warnings
from lora_ft.reports.markdown import escaped, render_table


def render(report: BenchReport) -> str:
    """Return the Markdown, which ends with a newline."""
    blocks = [f"# {escaped(report.suite.name)}: {report.verdict}"]
    if report.suite.about:
        blocks.append(escaped(report.suite.about))
    blocks.append(escaped(" · ".join(facts(report))))
    if notes := warnings(report):
        blocks.append("\n".join(f"- **{escaped(warning)}**" for warning in notes))
    for heading, tables in sections(report).items():
        blocks += [f"## {heading}", *map(render_table, tables)]
    blocks += ["## How it was measured", *map(escaped, method(report))]
    return "\n\n".join(blocks) + "\n"
