"""The page of a comparison: all texts are escaped, and changes are marked."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.compare import compare
from lora_ft.core.printable import printable
from lora_ft.reports.comparison_page import marked, render
from tests.lora_ft.test_compare import BAD, GOOD, write

NASTY = '<script>alert(1)</script> & "quotes" </p><img src=x onerror=alert(1)>'


def words(html: str) -> str:
    return unescape(re.sub(r"</?(?:ins|del)>", "", html))


@given(st.text(max_size=30), st.text(max_size=30))
def test_texts_without_marks_are_unchanged(old: str, new: str) -> None:
    assert tuple(map(words, marked(old, new))) == (printable(old), printable(new))


def test_whole_words_are_marked() -> None:
    assert marked("the cat sat", "the cats sat down") == (
        "the <del>cat</del> sat",
        "the <ins>cats</ins> sat<ins> down</ins>",
    )
    assert marked("今日は雨", "今日は晴") == ("今日は<del>雨</del>", "今日は<ins>晴</ins>")
    assert marked("", "new") == ("", "<ins>new</ins>")


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    names = [write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", [NASTY, *BAD[1:]])]
    comparison = compare(names)
    page = render(comparison, rows=3)
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "<script" not in page and "<img" not in page and "http:" not in page and "https:" not in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert page.count("<article") == 3 and "3 of 4 rows" in page
    assert NASTY in words(page)
    for name in ("rouge1", "rougeLsum"):
        assert f">{name}</th>" in page
    change = comparison.contenders[1].differences["rouge1"]
    assert change.estimate.signed in page and f"{change.p:.3f}" in page
    assert "struck out" in page


def test_three_models_are_marked_against_the_first(tmp_path: Path) -> None:
    three = [write(tmp_path / f"{i}.jsonl", texts) for i, texts in enumerate((GOOD, BAD, GOOD))]
    page = render(compare(three), rows=4)
    assert "<del>" not in page and "<ins>sun</ins>" in page
    assert page.count('<div class="texts">') == 4
