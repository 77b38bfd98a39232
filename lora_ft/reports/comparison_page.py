"""A comparison as one HTML page: scores, differences, and the texts of each row side by side with changes marked."""

from __future__ import annotations

from lora_ft.evaluation.comparison import Comparison
from lora_ft.reports.answers import STYLE, answer_row, marked
from lora_ft.reports.html import document, escape, section, table
from lora_ft.reports.table import Cell, Table


def render(comparison: Comparison, *, rows: int) -> str:
    """Return the page.

    Args:
        comparison: Scores and answers of at least two models.
        rows: Number of rows to show, the most changed rows first.
    """
    first, *contenders = comparison.contenders
    total = len(comparison.prompts)
    names = " · ".join(model.name for model in comparison.contenders)
    header = ["<h1>Answers compared</h1>", f'<p class="facts">{escape(names)} · {total:,} rows</p>']
    how = [
        f'<p class="note">{escape(", ".join(scores))}: {escape(text)}</p>' for text, scores in comparison.how.items()
    ]
    shown = comparison.order[:rows]
    selection = f"{len(shown):,} of {total:,} rows, ordered by the change of {escape(comparison.by)}. "
    old, new = escape(first.name), escape(contenders[0].name)
    legend = (
        f"Words only in {old} are <del>struck out</del>, words only in {new} are <ins>underlined</ins>."
        if len(contenders) == 1
        else f"Words that are not in {old} are <ins>underlined</ins>."
    )
    body = [
        section("Scores", [table(_scores(comparison)), *how]),
        section("Rows that changed most", [f"<p>{selection}{legend}</p>", *(_row(comparison, at) for at in shown)]),
    ]
    return document("Answers compared", header, body, STYLE)


def _scores(comparison: Comparison) -> Table:
    return Table(
        "Means and differences",
        comparison.columns,
        [[Cell(text) for text in line] for line in comparison.lines()],
        2,
        "; ".join((comparison.note, *comparison.warnings)),
    )


def _row(comparison: Comparison, at: int) -> str:
    first, *contenders = comparison.contenders
    pairs = [marked(first.answers[at], contender.answers[at]) for contender in contenders]
    first_text = pairs[0][0] if len(contenders) == 1 else escape(first.answers[at])
    texts = [first_text, *(marked_text for _, marked_text in pairs)]
    by = comparison.by
    captions = [f"{model.name} · {by} {model.rows[by][at]:.1f}" for model in comparison.contenders]
    return answer_row(
        at + 1,
        [f"{comparison.change(at, contender):+.1f}" for contender in contenders],
        list(zip(captions, texts, strict=True)),
        comparison.references[at],
        comparison.prompts[at],
    )
