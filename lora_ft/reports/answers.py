"""Answers on a page: the texts of a row side by side, with the words marked that differ between two texts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from lora_ft.data.words import pieces
from lora_ft.reports.html import escape

STYLE = """
.row { border: 1px solid var(--edge); border-radius: 6px; margin: 0 0 20px; padding: 12px 16px; break-inside: avoid; }
.row h3 { display: flex; flex-wrap: wrap; gap: 4px 16px; } .row h3 span { color: var(--soft); font-weight: 400; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px 24px;
         margin: 12px 0; }
.text { white-space: pre-wrap; margin: 2px 0 0; } .who { color: var(--soft); font-size: .875rem; margin: 0; }
summary { color: var(--soft); font-size: .875rem; cursor: pointer; }
ins, del { border-radius: 3px; text-decoration-thickness: 1.5px; text-underline-offset: 3px; background: var(--shade); }
ins { color: var(--good); } del { color: var(--bad); }
"""


def marked(old: str, new: str) -> tuple[str, str]:
    """Return both texts as HTML: words that only the first has in <del>, words that only the second has in <ins>."""
    before, after = pieces(old), pieces(new)
    old_parts, new_parts = [], []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        removed, added = escape("".join(before[a:b])), escape("".join(after[c:d]))
        old_parts.append(removed if kind == "equal" or not removed else f"<del>{removed}</del>")
        new_parts.append(added if kind == "equal" or not added else f"<ins>{added}</ins>")
    return "".join(old_parts), "".join(new_parts)


def answer_row(
    number: int, notes: Sequence[str], answers: Sequence[tuple[str, str]], references: Sequence[str], prompt: str
) -> str:
    """Return one row as HTML.

    Args:
        number: Number of the row, from 1.
        notes: Short texts next to the number, such as the change of the score.
        answers: Caption (plain text) and answer (HTML, as `marked` returns it) of each model.
        references: Acceptable answers.
        prompt: Prompt, shown on demand.
    """
    heading = " ".join([f"Row {number}", *(f"<span>{escape(note)}</span>" for note in notes)])
    texts = "".join(
        f'<div><p class="who">{escape(caption)}</p><p class="text">{answer or "(nothing)"}</p></div>'
        for caption, answer in answers
    )
    expected = "".join(f'<p class="text">{escape(text)}</p>' for text in references)
    return (
        f'<article class="row"><h3>{heading}</h3>\n<div class="texts">{texts}</div>\n'
        f'<p class="who">{"References" if len(references) > 1 else "Reference"}</p>{expected}\n'
        f'<details><summary>Prompt</summary><p class="text">{escape(prompt)}</p></details></article>'
    )
