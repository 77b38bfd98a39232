"""`Name: text` lines: joined to a context, shortened from the beginning, and parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.chats.lines import Line, context_of, parse_line, parse_lines

lines = st.lists(st.builds(Line, st.text("abc", min_size=1, max_size=9), st.text("xyz \n", min_size=1)), max_size=9)


def test_context_is_lines_joined_by_newlines() -> None:
    assert context_of([Line("Ana", "one\ntwo"), Line("Ben", "three")], 100) == "Ana: one\ntwo\nBen: three"
    assert context_of([], 100) == ""


def test_oldest_lines_are_dropped_and_a_long_last_line_loses_its_beginning() -> None:
    lines = [Line("Ana", "one"), Line("Ben", "two"), Line("Ana", "three")]
    assert context_of(lines, 19) == "Ben: two\nAna: three" and context_of(lines, 18) == "Ana: three"
    assert context_of([Line("Ana", "0123456789")], 10) == "Ana: 56789"


@given(lines, st.integers(30, 200))
def test_context_has_the_newest_lines_within_the_limit(lines: list[Line], characters: int) -> None:
    context = context_of(lines, characters)
    assert len(context) <= characters
    if lines:
        assert context.endswith(lines[-1].text[-10:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ana: hello", Line("Ana", "hello")),
        (" Ana Oak: 10:30: yes\nor no ", Line("Ana Oak", "10:30: yes\nor no")),
        ("hello", None),
        ("https://example.org", None),
        ("Ana:", None),
        (": hello", None),
        ("Ana: ", None),
        ("one\ntwo: three", None),
        (70 * "x" + ": long", None),
        ("", None),
    ],
)
def test_line_is_a_name_and_a_text(text: str, expected: Line | None) -> None:
    assert parse_line(text) == expected


def test_line_without_a_name_continues_the_line_before() -> None:
    assert parse_lines("lost\nAna: one\n\ntwo\nBen: three\n") == [Line("Ana", "one\n\ntwo"), Line("Ben", "three")]
