"""Text of reports as HTML."""

from __future__ import annotations

from lora_ft.reports.html import aside, prose, table
from lora_ft.reports.table import Table


def test_spans_in_backquotes_are_code() -> None:
    assert prose("Run `lora-ft train <TASK>` & wait.") == "Run <code>lora-ft train &lt;TASK&gt;</code> &amp; wait."
    assert prose("one ` alone") == "one ` alone"


def test_notes_of_tables_and_warnings_show_code() -> None:
    note = "Add `--baseline`."
    assert all("<code>--baseline</code>" in part for part in (table(Table("T", ("a",), [], note=note)), *aside([note])))
