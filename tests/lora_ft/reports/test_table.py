"""Tables have the same cells in the terminal, Markdown and HTML, and fewer columns in the terminal."""

from __future__ import annotations

from lora_ft.reports import html, markdown, terminal
from lora_ft.reports.table import NONE, Cell, Column, Table

COLUMNS = [
    Column[int]("number", str, ""),
    Column[int]("square, m²", lambda n: Cell(str(n * n), best=n == 3), "square"),
    Column[int]("cube, m³", lambda n: str(n**3)),
    Column[int]("never", lambda n: NONE, "never"),
]
TABLE = Table.of("Powers", COLUMNS, [2, 3], note="In meters.")


def test_every_column_is_computed_from_every_item() -> None:
    assert TABLE.columns == ["number", "square, m²", "cube, m³", "never"]
    assert [[cell.text for cell in row] for row in TABLE.rows] == [["2", "4", "8", NONE], ["3", "9", "27", NONE]]


def test_filled_drops_columns_that_are_empty_in_all_rows() -> None:
    assert TABLE.filled().columns == ["number", "square, m²", "cube, m³"]
    explained = Table("t", ("a", "b", "c"), [[Cell("x"), Cell(NONE), Cell(NONE, "why")]]).filled()
    assert explained.columns == ["a", "c"] and explained.rows == [[Cell("x"), Cell(NONE, "why")]]


def test_terminal_shows_columns_with_a_brief_heading() -> None:
    assert TABLE.brief().columns == ["", "square", "never"]
    console = terminal.Console()
    with console.capture() as output:
        console.print(terminal.render_table(TABLE.filled()))
    assert [line.split() for line in output.get().splitlines()] == [["Powers"], ["square"], ["2", "4"], ["3", "9"]]


def test_markdown_and_html_show_all_columns_and_the_note() -> None:
    assert markdown.render_table(TABLE.filled()).splitlines() == [
        "In meters.",
        "",
        "### Powers",
        "",
        "| number | square, m² | cube, m³ |",
        "|:--|--:|--:|",
        "| 2 | 4 | 8 |",
        "| 3 | **9** | 27 |",
    ]
    page = html.table(TABLE.filled())
    assert "In meters." in page and page.count("<td") == 4 and '<td class="best">9</td>' in page
