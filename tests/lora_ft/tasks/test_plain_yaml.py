"""Reader of a safe subset of YAML: plain values as in YAML 1.2, and limits that are checked before values are built."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.tasks.plain_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, plain_text, read_yaml

# Tests write JSON's Infinity as .inf, so no text contains that word.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).filter(lambda text: "Infinity" not in text)
WORDS = st.sampled_from(
    ["yes", "No", "on", "null", "~", "1e3", "010", "0x1f", "1_000", "1:30", "2024-01-01", ".inf", "<<", "-", "=", ""]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**15), 10**15), st.floats(allow_nan=False), TEXTS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(TEXTS, WORDS), inner, max_size=4)),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_read_as_json(value: Any) -> None:
    assert parse_yaml(json.dumps(value, ensure_ascii=False).replace("Infinity", ".inf"), "x").value == value


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_read_or_refused_with_a_short_message(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except UsageError as error:
        assert error.message.startswith("x ") and error.exit_code == 2
        assert "\n" not in str(error) and len(str(error)) < 400


@given(content=st.binary(max_size=200))
def test_any_file_is_read_or_refused_by_name(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        read_yaml(file)
    except UsageError as error:
        assert str(file) in error.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1e-3", 0.001),
        ("5.", 5.0),
        ("yes", True),
        ("OFF", False),
        ("y", "y"),
        ("'no'", "no"),
        ("~", None),
        ("! 5", "5"),
    ],
)
def test_plain_scalars_are_read_as_in_yaml_1_2(text: str, value: Any) -> None:
    scalar = parse_yaml(text, "x").value
    assert scalar == value and type(scalar) is type(value)


def test_infinities_are_read_as_numbers() -> None:
    assert parse_yaml("[.inf, -.INF, 1e9999]", "x").value == [math.inf, -math.inf, math.inf]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BOMB, 6, "aliases expanded"),
        ("a: &b " + "x" * 100_000 + "\nc: [" + "*b, " * 100_000 + "]", 2, "aliases expanded"),
        ("[" * 100_000, 1, "deep"),
        ("- " * 5_000 + "x", 1, "deep"),
        ("a: 1\nb: 2\na: 3", 3, "'a' is repeated (first in line 1)"),
        ("a: !!python/object/apply:os.system [ls]", 1, "tags are not supported"),
        ("a: !!binary aGk=", 1, "tags are not supported"),
        ("a: !!timestamp 2024-01-01", 1, "tags are not supported"),
        ("a: &x [*x]", 1, "*x has no complete anchor"),
        ("a: *x", 1, "*x has no complete anchor"),
        ("a: {}\n<<: {b: 1}", 2, "merge keys"),
        ("a: 1\n---\nb: 2", 2, "a second document"),
        ("? [a, b]\n: 3", 1, "a key is not text"),
        ("a:\n\tb: 1", 2, "a tab"),
        ("a: [1, 2\nb: 3", 2, "is not YAML"),
        ("name\uff1aa\nbase: b", 1, "the colon of name is full-width"),
        ("name\uff1a a\n\nbase: b", 1, "the colon of name is full-width"),
        ("data:\n  target: a\n  train\uff1a b", 3, "the colon of train is full-width"),
        ("name:a\nbase: b", 1, "the colon of name has no blank after it"),
        ("data:\n  target: a\n  train:b\nbase: c", 3, "the colon of train has no blank after it"),
        ("name: a\nprompt: b: c", 2, "quote text"),
        ("a: 1\nb: \x1b[31m", 2, "control character"),
        ("a: @b", 1, "quote text"),
        ("a: " + "1" * 5_000, 1, "5,000 digits"),
        ("a: \ud800", None, "not UTF-8"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_unsupported_yaml_is_refused_with_its_line(text: str, line: int | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "task.yaml")
    assert words in str(caught.value) and caught.value.remedy
    assert line is None or f"(line {line})" in caught.value.message
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: b".encode("utf-16"), "UTF-16, not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "too large"),
    ],
    ids=["utf-16", "binary", "large"],
)
def test_file_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_yaml(tmp_path / "x.yaml")


def test_marks_record_line_and_text_of_values() -> None:
    marks = parse_yaml("a: 1\nb:\n  - yes\n  - c: 'no'\n", "x").marks
    assert (marks["b", 0].line, marks["b", 0].text) == (3, "yes")
    assert (marks["b", 1, "c"].line, marks["b", 1, "c"].text) == (4, "no")


def test_aliases_are_copied() -> None:
    value = parse_yaml("a: &a {b: [1]}\nc: *a\n", "x").value
    assert value == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert value["a"] is not value["c"]


def test_maximum_depth_is_accepted() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x").value is not None


@given(st.one_of(TEXTS, WORDS))
def test_plain_text_is_read_back_unchanged(text: str) -> None:
    if plain_text(text):
        dumped = yaml.safe_dump({"a": text}, allow_unicode=True)
        assert parse_yaml(dumped, "x").value == {"a": text}
