"""The tables of names, numbers and sentences that a source lacks."""

from __future__ import annotations

from lora_ft.reports.unsupported import unsupported_tables


def line(output: str, *unsupported: str) -> dict[str, object]:
    return {"output": output, "unsupported": list(unsupported)}


def test_answers_with_the_most_are_first() -> None:
    rows = [line("a"), line("Then Eve came.", "Eve"), line("Then Eve paid 4.", "Eve", "4")]
    (table,) = unsupported_tables(rows)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["row 3", "Eve, 4", "Then Eve paid 4."],
        ["row 2", "Eve", "Then Eve came."],
    ]
    assert "2 of 3 answers" in table.note and "In several answers: Eve (2)." in table.note


def test_many_rows_and_long_answers_are_cut() -> None:
    (table,) = unsupported_tables([line("x" * 1000, str(i)) for i in range(100)])
    assert len(table.rows) == 30 and len(table.rows[0][2].text) < 400
    assert "100 of 100 answers" in table.note and "30 are shown" in table.note


def test_sentences_that_are_not_entailed_have_a_table() -> None:
    rows = [{"output": "A. B.", "unentailed": ["A.", "B."]}, {"output": "C.", "unentailed": []}]
    (table,) = unsupported_tables(rows)
    assert [[cell.text for cell in row] for row in table.rows] == [["row 1", "A. B.", "A. B."]]
    assert "1 of 2 answers have a sentence" in table.note


def test_rows_without_the_metrics_have_no_table() -> None:
    assert unsupported_tables([{"output": "a"}]) == []
