"""Prompts: templates are filled with a row's values, and malformed templates are refused."""

from __future__ import annotations

import datetime
import json
import math
import re
import unicodedata
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.export.runtime import Prompt

LITERAL = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=12)
COLUMN = st.text(st.characters(exclude_characters="{}[]:!?", exclude_categories=["Cs"]), min_size=1, max_size=8)
VALUE = st.one_of(st.text(max_size=12), st.integers(), st.floats(allow_nan=False, allow_infinity=False))


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


def test_numbers_are_written_out_and_booleans_as_in_json() -> None:
    row = {"a": 0, "b": False, "c": 1.5, "d": Decimal("1.50"), "e": np.float32(0.5), "f": np.int64(3), "g": np.True_}
    assert Prompt("{a} {b} {c} {d} {e} {f} {g}").fill(row) == "0 false 1.5 1.50 0.5 3 true"


@pytest.mark.parametrize(
    ("value", "kind", "remedy"),
    [
        ({"text": ["a"], "answer_start": [1]}, "an object (keys: text, answer_start)", "x.text[0]"),
        ({"en": "a", "de": "b"}, "an object (keys: en, de)", "x.en"),
        ([{"role": "user", "content": "a"}], "a list of objects", "x[0].content"),
        (["a", "b"], "a list", "x[0]"),
        ([], "a list", "write text"),
        ({}, "an object", "write text"),
        (b"a", "bytes", "decode"),
        (datetime.date(2023, 1, 1), "a date", "as text"),
        (datetime.datetime(2023, 1, 1), "a datetime", "as text"),
        (math.nan, "the number nan", "finite number"),
        (-math.inf, "the number -inf", "finite number"),
        (Decimal("NaN"), "the number NaN", "finite number"),
        (np.array(["a"]), "a ndarray", "as text"),
        ({1, 2}, "a set", "as text"),
    ],
)
def test_value_that_is_not_text_is_refused_with_a_remedy(value: object, kind: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"column 'x' holds {kind}")) as caught:
        Prompt("{x}").fill({"x": value})
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("path", "row", "text"),
    [
        ("translation.en", {"translation": {"en": "house"}}, "house"),
        ("messages[1].content", {"messages": [{"content": "a"}, {"content": "b"}]}, "b"),
        ("messages[-1].content", {"messages": [{"content": "a"}, {"content": "b"}]}, "b"),
        ("answers.text[0]", {"answers": {"text": ["Oslo", "in Oslo"]}}, "Oslo"),
        ("answers.text[0]", {"answers": [{"text": "Oslo"}, {"text": "in Oslo"}]}, "Oslo"),
        ("turns.parts[-1].text", {"turns": [{"parts": {"text": "a"}}, {"parts": {"text": "b"}}]}, "b"),
        ("answers[-1].text", {"answers": [{"text": "Oslo"}, {"text": "in Oslo"}]}, "in Oslo"),
        ("a.b", {"a.b": "literal", "a": {"b": "inside"}}, "literal"),
        ("a.b.c", {"a.b": {"c": "half literal"}}, "half literal"),
        ("a.b.c", {"a.b": "text", "a": {"b": {"c": "inside"}}}, "inside"),
        ("a.b", {"a": {"b": 3}}, "3"),
        ("x[0]", {"x[0]": "literal"}, "literal"),
        ("a[1][0]", {"a": [[1], [2]]}, "2"),
    ],
)
def test_a_path_leads_to_text_inside_a_column(path: str, row: dict[str, object], text: str) -> None:
    assert Prompt("{" + path + "}").fill(row) == text
    assert Prompt("{" + path + "?none}").fill(row) == text


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("a.b", {"a": {"c": 1}}),
        ("a.b", {"a": "text"}),
        ("a.b", {"a": None}),
        ("a[5]", {"a": ["x"]}),
        ("a[0]", {"a": {"0": "x"}}),
        ("a[x]", {"a": ["x"]}),
        ("a..b", {"a": {"b": 1}}),
        ("a.b", {"a": [{"b": 1}, 2]}),
        ("a[9999999999]", {"a": ["x"]}),
        (".", {"a": 1}),
        ("a.", {"a": {"b": 1}}),
    ],
)
def test_missing_path_is_refused_unless_optional(path: str, row: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="lacks the column"):
        Prompt("{" + path + "}").fill(row)
    assert Prompt("{" + path + "?none}").fill(row) == "none"


@pytest.mark.parametrize("row", [{}, {"input": ""}, {"input": " \n"}, {"input": None}, {"input": math.nan}])
def test_an_optional_column_may_be_missing_or_empty(row: dict[str, object]) -> None:
    assert Prompt("do {task}: {input?}!").fill({"task": "it", **row}) == "do it: !"
    assert Prompt("{input?no input. Go on}").fill(row) == "no input. Go on"


def test_an_optional_column_that_is_there_is_used() -> None:
    prompt = Prompt("{task} {input?none}")
    assert prompt.fill({"task": "a", "input": "b"}) == "a b"
    assert prompt.columns == ("task", "input") and prompt.single == "task"
    assert prompt.fill_text("hello") == "hello none"
    with pytest.raises(UsageError, match="column 'input' holds a list"):
        prompt.fill({"task": "a", "input": ["b"]})


def test_a_column_whose_name_ends_with_a_question_mark_comes_first() -> None:
    prompt = Prompt("{toxic?}")
    assert prompt.fill({"toxic?": "yes", "toxic": "no"}) == "yes"
    with pytest.raises(UsageError, match="lacks the column"):
        prompt.fill({"toxic?": None})


def test_a_bare_text_fills_a_path() -> None:
    assert Prompt("say: {messages[0].content}").fill_text("hi") == "say: hi"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "[0]"]), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "a.b", "a[0]"]), JSON),
    st.text("ab.[]0-1?", min_size=1, max_size=8).filter(lambda name: name.count("[") == name.count("]")),
)
def test_any_value_becomes_text_or_is_refused(row: dict[str, object], path: str) -> None:
    try:
        text = Prompt("{" + path + "}").fill(row)
    except UsageError:
        return
    scalars = {""} if "?" in path else set()
    stack: list[object] = [row, path.partition("?")[2]]
    while stack:
        value = stack.pop()
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value
        else:
            scalars.add(value if isinstance(value, str) else json.dumps(value))
    assert text in scalars


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


@pytest.mark.parametrize("template", ["{a:>5}", "{a:{b}}", "{a!r}", "{a!s:x}", "{a: price}"])
def test_placeholder_with_a_mark_is_refused_by_its_name(template: str) -> None:
    with pytest.raises(UsageError, match=r"the placeholder of 'a' .* has a colon or an exclamation mark; .* rename"):
        Prompt(template)


@pytest.mark.parametrize("template", ["{}", "{a} {}", "{!r}", "{:x}"])
def test_placeholder_without_a_column_name_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="a placeholder without a column name"):
        Prompt(template)


def test_a_null_is_not_said_to_be_missing() -> None:
    with pytest.raises(UsageError, match=r"lacks the column 'text' .*: its value is null; .* write \{text\?\}"):
        Prompt("{text}").fill({"text": None})


def test_a_column_that_looks_like_a_missing_one_is_shown_by_its_codes() -> None:
    with pytest.raises(UsageError, match=r"lacks the column 'Gr\\xf6\\xdfe' .* it has 'Gro\\u0308\\xdfe'"):
        Prompt("{Größe}").fill({unicodedata.normalize("NFD", "Größe"): "1"})


@pytest.mark.parametrize("row", [{}, {"other": 1}, {"texts": "a", "other": 1}])
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


def test_a_bare_text_is_not_a_row_as_json() -> None:
    prompt = Prompt("say: {text}")
    with pytest.raises(UsageError, match="is a JSON object with the column 'text'"):
        prompt.fill_text(' {"text": "hi"}')
    for text in ('{"text": {"div": "of FHIR"}}', '{"other": "hi"}', '{"text": "hi"', "{" * 100_000):
        assert prompt.fill_text(text) == f"say: {text}"


def test_a_bare_text_cannot_fill_several_columns() -> None:
    with pytest.raises(UsageError, match="needs the columns question, context"):
        Prompt("{question} {context} {question}").fill_text("x")
