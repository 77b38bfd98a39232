"""A comparison as one HTML page: scores and differences, and the texts of each row side by side, changes marked."""

from __future__ import annotations

from difflib import SequenceMatcher

from lora_ft.data.words import pieces
from lora_ft.evaluation.comparison import Comparison, Contender
from lora_ft.reports.html import document, escape, section, table
from lora_ft.reports.table import Cell, Table

_STYLE = """
.row { border: 1px solid var(--edge); border-radius: 6px; margin: 0 0 20px; padding: 12px 16px; break-inside: avoid; }
.row h3 { display: flex; flex-wrap: wrap; gap: 4px 16px; } .row h3 span { color: var(--soft); font-weight: 400; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px 24px;
         margin: 12px 0; }
.text { white-space: pre-wrap; margin: 2px 0 0; } .who { color: var(--soft); font-size: .875rem; margin: 0; }
summary { color: var(--soft); font-size: .875rem; cursor: pointer; }
ins, del { border-radius: 3px; text-decoration-thickness: 1.5px; text-underline-offset: 3px; background: var(--shade); }
ins { color: var(--good); } del { color: var(--bad); }
"""


def render(found: Comparison, *, rows: int) -> str:
    """The page, with the texts of so many of the rows that changed most."""
    first, *others = found.contenders
    names = " · ".join(one.name for one in found.contenders)
    header = ["<h1>Answers compared</h1>", f'<p class="facts">{escape(names)} · {len(found.prompts):,} rows</p>']
    how = [f'<p class="note">{escape(", ".join(scores))}: {escape(text)}</p>' for text, scores in found.how.items()]
    shown = found.order[:rows]
    which = f"{len(shown):,} of {len(found.prompts):,} rows, those first whose {found.by} differs most. "
    old, new = escape(first.name), escape(others[0].name)
    legend = (
        f"Words that only {old} has are <del>struck out</del>, those that only {new} has <ins>underlined</ins>."
        if len(others) == 1
        else f"Words that {old} does not have there are <ins>underlined</ins>."
    )
    body = [
        section("Scores", [table(_scores(found)), *how]),
        section("Rows that changed most", [f"<p>{which}{legend}</p>", *(_row(found, at) for at in shown)]),
    ]
    return document("Answers compared", header, body, _STYLE)


def marked(old: str, new: str) -> tuple[str, str]:
    """Both texts as HTML: in the first what the second lacks as <del>, in the second what the first lacks as <ins>."""
    before, after = pieces(old), pieces(new)
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = escape("".join(before[a:b])), escape("".join(after[c:d]))
        left.append(gone if kind == "equal" or not gone else f"<del>{gone}</del>")
        right.append(come if kind == "equal" or not come else f"<ins>{come}</ins>")
    return "".join(left), "".join(right)


def _scores(found: Comparison) -> Table:
    columns = ("score", "model", "0-100 [95 %]", "difference [95 %]", "p")
    return Table(
        "Means and differences",
        columns,
        [[Cell(text) for text in line] for line in found.lines()],
        2,
        "; ".join((found.note, *found.warnings)),
    )


def _row(found: Comparison, at: int) -> str:
    first, *others = found.contenders
    changes = " ".join(f"<span>{found.change(at, one):+.1f}</span>" for one in others)
    halves = [marked(first.answers[at], one.answers[at]) for one in others]
    start = halves[0][0] if len(others) == 1 else escape(first.answers[at])
    texts = [start, *(come for _, come in halves)]
    answers = "".join(_text(one, found.by, at, text) for one, text in zip(found.contenders, texts, strict=True))
    references = "".join(f'<p class="text">{escape(text)}</p>' for text in found.references[at])
    several = "References" if len(found.references[at]) > 1 else "Reference"
    return (
        f'<article class="row"><h3>Row {at + 1} {changes}</h3>\n<div class="texts">{answers}</div>\n'
        f'<p class="who">{several}</p>{references}\n'
        f'<details><summary>Prompt</summary><p class="text">{escape(found.prompts[at])}</p></details></article>'
    )


def _text(one: Contender, by: str, at: int, html: str) -> str:
    return (
        f'<div><p class="who">{escape(one.name)} · {escape(by)} {one.rows[by][at]:.1f}</p>'
        f'<p class="text">{html or "(nothing)"}</p></div>'
    )
