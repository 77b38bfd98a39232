"""A report as GitHub's Markdown: the tables of the page, without its charts."""

from __future__ import annotations

from lora_ft.bench.report import BenchReport
from lora_ft.bench.tables import facts, method, sections, warnings
from lora_ft.reports import markdown
from lora_ft.reports.html import Cell, Table
from lora_ft.reports.markdown import escaped


def render(report: BenchReport) -> str:
    """The text, which ends with a newline."""
    blocks = [f"# {escaped(report.suite.name)}: {report.verdict}"]
    if report.suite.about:
        blocks.append(escaped(report.suite.about))
    blocks.append(escaped(" · ".join(facts(report))))
    if told := warnings(report):
        blocks.append("\n".join(f"- **{escaped(warning)}**" for warning in told))
    for heading, tables in sections(report).items():
        blocks += [f"## {heading}", *map(_table, tables)]
    blocks += ["## How it was measured", *map(escaped, method(report))]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    columns, rows = [escaped(column) for column in table.columns], [[*map(_cell, row)] for row in table.rows]
    lines = markdown.table(columns, rows, words=table.words)
    note = f"{escaped(table.note)}\n\n" if table.note else ""
    return f"{note}### {escaped(table.title)}\n\n{lines}"


def _cell(cell: Cell) -> str:
    return f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
