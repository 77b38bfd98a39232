"""The Markdown of a report: it has the tables of the page, and names are escaped."""

from __future__ import annotations

import re

from lora_ft.bench import markdown
from lora_ft.bench.tables import sections
from lora_ft.reports.markdown import escaped
from tests.lora_ft.bench.reports import broken, complete


def test_every_table_is_complete() -> None:
    for report in (complete(), broken()):
        text = markdown.render(report)
        assert text.startswith(f"# {escaped(report.suite.name)}: {report.verdict}\n")
        blocks = re.findall(r"^### .*\n\n((?:\|.*\n?)+)", text, re.MULTILINE)
        tables = [table for group in sections(report).values() for table in group]
        assert len(blocks) == len(tables)
        for block, table in zip(blocks, tables, strict=True):
            lines = block.strip().splitlines()
            assert len(lines) == 2 + len(table.rows)
            assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 1}


def test_markdown_shows_verdict_warnings_and_method() -> None:
    text = markdown.render(broken())
    assert "unstable" in text and "The benchmark was interrupted" in text and "no kernel for bf16" in text
    assert "How it was measured" in text and "avx512\\_vnni" in text
    assert "**onnx/fp32**" in text and "**onnx/int8" not in text


def test_names_are_escaped() -> None:
    text = markdown.render(complete())
    assert "<script" not in text
    assert '| torch/fp32 &lt;script&gt;alert("1")&lt;/script&gt; |' in text
    assert "| onnx/fp32 &amp; more |" in text
    assert r"| **my\|own\_engine/\*int8\*** |" in text
