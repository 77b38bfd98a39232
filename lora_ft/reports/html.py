"""Self-contained HTML pages without scripts, in light and dark mode, with tables that scroll on their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape as escape_markup

from lora_ft.core.printable import printable
from lora_ft.reports.table import Cell, Table

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1d21; --soft: #5b5f68; --edge: #d9dce1; --shade: #f4f5f7;
        --good: #00694d; --bad: #a33b00; }
@media (prefers-color-scheme: dark) { :root { --page: #15171b; --text: #e8e9ec; --soft: #a5aab4; --edge: #353941;
        --shade: #1e2127; --good: #46d3a8; --bad: #ff9d66; } }
@media print { :root { color-scheme: light; --page: #fff; --text: #000; --soft: #444; --edge: #bbb; --shade: #f4f5f7;
        --good: #00694d; --bad: #a33b00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 1160px; margin: 0 auto; padding: 0 16px; overflow-wrap: anywhere; }
header { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 44px 0 12px; padding-top: 16px; border-top: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 8px 0; max-width: 75ch; }
.facts, .note { color: var(--soft); font-size: .875rem; }
.facts { max-width: none; }
.note { margin: 6px 0 0; } .note:has(+ .scroll) { margin: 0 0 10px; }
.badge { display: inline-block; padding: 2px 10px; border: 1.5px solid; border-radius: 99px;
         font-size: .875rem; font-weight: 600; vertical-align: middle; }
.stable { color: var(--good); } .unstable { color: var(--bad); }
.warnings { margin: 16px 0; padding: 10px 16px; border-left: 4px solid var(--bad); background: var(--shade); }
.warnings ul { margin: 0; padding-left: 1.2em; }
.scroll { overflow-x: auto; margin: 0 0 24px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding: 8px 0 6px; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--edge); }
th { font-weight: 600; vertical-align: bottom; } tbody th { font-weight: 400; overflow-wrap: break-word; }
thead th { color: var(--soft); } tbody tr:hover > * { background: var(--shade); }
.word { text-align: left; } td.word { white-space: normal; min-width: 12em; }
tr > :first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; }
tbody .best { font-weight: 700; color: var(--good); }
[title]:not(.best, .badge) { text-decoration: underline dotted; text-underline-offset: 3px; cursor: help; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 28px 40px;
          margin: 20px 0; }
figure { margin: 0; max-width: 510px; break-inside: avoid; }
figcaption { font-weight: 600; margin-bottom: 4px; }
@media (max-width: 500px) { tbody th { max-width: 42vw; white-space: normal; } th, td { padding: 5px 8px; } }
@media print { .scroll { overflow: visible; } td, th { padding: 3px 6px; font-size: .7rem; } tr { break-inside: avoid; }
        .charts { grid-template-columns: 1fr 1fr; } h2 { break-after: avoid; } tr > :first-child { position: static; } }
"""

# The page has no script and loads nothing; with this it could not, whatever the texts in it hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def escape(text: str) -> str:
    """Return plain text as HTML in which no character is markup, a control character or a change of direction."""
    return escape_markup(printable(text))


def prose(text: str) -> str:
    """Return a sentence as HTML. As in Markdown, a span in backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def document(title: str, header: Sequence[str], main: Sequence[str], style: str = "") -> str:
    """Return a page.

    Args:
        title: Title of the window, plain text.
        header, main: Parts of the page, as HTML.
        style: CSS rules in addition to the rules of all pages.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="generator" content="lora-ft">',  # lora_ft.core.ownership replaces only files with this mark
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}{_STYLE}</style>",
            "</head>",
            "<body>",
            "<header>",
            *header,
            "</header>",
            "<main>",
            *main,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(heading: str, parts: Sequence[str]) -> str:
    """Return a section of the page with its heading, which is plain text."""
    name = "-".join("".join(c if c.isalnum() else " " for c in heading.lower()).split())
    return "\n".join(
        [f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{escape(heading)}</h2>', *parts, "</section>"]
    )


def aside(warnings: Sequence[str]) -> list[str]:
    """Return a box of warnings, or nothing if there are none."""
    items = "".join(f"<li>{prose(warning)}</li>" for warning in warnings)
    return [f'<aside class="warnings" aria-label="Warnings"><ul>{items}</ul></aside>'] if warnings else []


def table(table: Table) -> str:
    """Return a table in a box that scrolls if the table is too wide."""
    title = escape(table.title)
    kinds = [' class="word"' if at < table.words else "" for at in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(cell, at, table.words) for at, cell in enumerate(row))}</tr>" for row in table.rows
    )
    note = f'<p class="note">{prose(table.note)}</p>' if table.note else ""
    # Only an element that can have the focus can be scrolled with the keyboard.
    return (
        f'{note}<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><caption>{title}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(cell: Cell, at: int, words: int) -> str:
    kinds = " ".join(kind for kind, holds in (("word", at < words), ("best", cell.best)) if holds)
    attributes = (f' class="{kinds}"' if kinds else "") + (f' title="{escape(cell.hint)}"' if cell.hint else "")
    return (
        f'<th scope="row"{attributes}>{escape(cell.text)}</th>'
        if at == 0
        else f"<td{attributes}>{escape(cell.text)}</td>"
    )
