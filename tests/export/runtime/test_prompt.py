"""Prompts: a row's values go where the template says, and bad templates are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import UsageError
from export.runtime import Prompt

LITERAL = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=12)
COLUMN = st.text(st.characters(exclude_characters="{}[]:!", exclude_categories=["Cs"]), min_size=1, max_size=8)
VALUE = st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.booleans())


@given(st.data())
def test_filling_replaces_each_placeholder_by_its_value(data: st.DataObject) -> None:
    row = data.draw(st.dictionaries(COLUMN, VALUE, min_size=1, max_size=4))
    columns = data.draw(st.lists(st.sampled_from(sorted(row)), min_size=1, max_size=6))
    literals = data.draw(st.lists(LITERAL, min_size=len(columns) + 1, max_size=len(columns) + 1))
    template, expected = literals[0], literals[0]
    for column, literal in zip(columns, literals[1:], strict=True):
        template += "{" + column + "}" + literal
        expected += str(row[column]) + literal
    prompt = Prompt(template)
    assert prompt.fill(row) == expected
    assert prompt.columns == tuple(dict.fromkeys(columns))
    assert prompt.template == template


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_doubled_braces_are_braces(before: str, value: str, after: str) -> None:
    double = lambda text: text.replace("{", "{{").replace("}", "}}")  # noqa: E731
    assert Prompt(double(before) + "{x}" + double(after)).fill({"x": value}) == before + value + after


@given(st.text(max_size=30))
def test_any_template_is_parsed_or_refused(template: str) -> None:
    try:
        prompt = Prompt(template)
    except UsageError as error:
        assert repr(template) in error.message
    else:
        assert prompt.columns
        prompt.fill(dict.fromkeys(prompt.columns, "v"))


def test_a_value_is_not_a_template() -> None:
    assert Prompt("{a} {b}").fill({"a": "{b}", "b": "{{}} {a"}) == "{b} {{}} {a"


def test_columns_keep_the_order_of_their_first_use() -> None:
    assert Prompt("{z} {a} {z} {m}").columns == ("z", "a", "m")


def test_values_that_are_no_text_are_written_out() -> None:
    assert Prompt("{a}{b}{c}").fill({"a": 0, "b": False, "c": 1.5}) == "0False1.5"


def test_columns_that_the_template_does_not_name_are_passed_over() -> None:
    assert Prompt("{a}").fill({"a": "x", "b": None, "c": "y"}) == "x"


def test_an_empty_value_is_a_value() -> None:
    assert Prompt("say: {a}.").fill({"a": ""}) == "say: ."


@pytest.mark.parametrize("template", ["", "no column", "{{escaped}}", "}}{{"])
def test_a_template_without_a_column_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="names no column") as caught:
        Prompt(template)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("template", ["{", "}", "{a} {", "{a", "a} {b}", "{a} {b{c}}", "{a!}"])
def test_a_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="is malformed"):
        Prompt(template)


@pytest.mark.parametrize("template", ["{}", "{a} {}", "{a:>5}", "{a:{b}}", "{a!r}", "{a!s:x}", "{!r}", "{:x}"])
def test_a_placeholder_that_is_no_columns_name_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="no column's name"):
        Prompt(template)


@pytest.mark.parametrize("row", [{}, {"other": 1}, {"text": None, "other": 1}])
def test_a_row_that_lacks_a_column_is_refused_by_its_name(row: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="lacks the column 'text'") as caught:
        Prompt("{other} {text}" if "other" in row else "{text}").fill(row)
    assert caught.value.exit_code == 2
    for name in row:
        assert repr(name) in caught.value.remedy
    if not row:
        assert "it has none" in caught.value.remedy


@given(st.text())
def test_a_bare_text_fills_the_only_column(text: str) -> None:
    assert Prompt("say: {text}, {text}").fill_text(text) == f"say: {text}, {text}"


def test_a_bare_text_cannot_fill_several_columns() -> None:
    with pytest.raises(UsageError, match="needs the columns question, context"):
        Prompt("{question} {context} {question}").fill_text("x")
