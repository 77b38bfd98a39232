"""JSON in the shapes that libraries write: equal rows from each, and ambiguous shapes are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats.content import Content
from lora_ft.data.formats.json_rows import read_json_rows

ROWS = [{"text": "a", "label": 0}, {"text": "b\nc", "label": 1}, {"text": "ü", "label": 0}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def read(text: str, name: str = "x.json", **options: str) -> list[tuple[str, dict[str, Any]]]:
    return read_json_rows(Content(Path(name), name, text.encode("utf-8", "surrogatepass")), **options)


def rows_of(text: str, name: str = "x.json", **options: str) -> list[dict[str, Any]]:
    return [row for _, row in read(text, name, **options)]


@given(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=2, max_size=5),
    st.sampled_from([".json", ".jsonl", ".ndjson", ".txt"]),
    st.sampled_from([None, 1]),
)
def test_lists_and_lines_are_distinguished_by_content(
    rows: list[dict[str, Any]], ending: str, indent: int | None
) -> None:
    assert rows_of(json.dumps(rows, indent=indent), f"x{ending}") == rows
    assert rows_of("\n".join(json.dumps(row, indent=indent) for row in rows), f"x{ending}") == rows


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
def test_pandas_orients_are_read(orient: Any) -> None:
    rows = rows_of(pandas.DataFrame(ROWS).to_json(orient=orient))
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS


@pytest.mark.parametrize("rows", [ROWS, [{"id": 1, "translation": {"en": "a"}}, {"id": 2, "translation": {"en": "b"}}]])
def test_columns_of_lists_are_read(rows: list[dict[str, Any]]) -> None:
    assert rows_of(json.dumps(pandas.DataFrame(rows).to_dict("list"))) == rows


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"data": ROWS}, None),
        ({"version": 1, "rows": ROWS}, None),
        ({"a": ROWS, "data": ROWS}, None),
        ({"a": ROWS, "b": [{}]}, "a"),
        ({"a": {"b": ROWS}}, "a.b"),
        ({"a.b": ROWS}, "a.b"),
        ({"a": pandas.DataFrame(ROWS).to_dict("list")}, "a"),
    ],
)
def test_rows_are_found_in_an_object(document: dict[str, Any], field: str | None) -> None:
    assert rows_of(json.dumps(document), **({"field": field} if field else {})) == ROWS


def test_single_object_is_a_row_only_in_json_lines() -> None:
    text = '{"data": [{"text": "a"}]}'
    assert rows_of(text, "x.jsonl") == [{"data": [{"text": "a"}]}] and rows_of(text) == [{"text": "a"}]


def test_squads_own_files_are_rows_of_questions() -> None:
    question = {"id": "1", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]}
    none = {"id": "2", "question": "Who?", "answers": [], "is_impossible": True}
    document = {"version": "2.0", "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [question, none]}]}]}
    first, second = rows_of(json.dumps(document))
    assert first == {
        "title": "T",
        "context": "C",
        "id": "1",
        "question": "Where?",
        "answers": {"text": ["Oslo"], "answer_start": [3]},
    }
    assert second["answers"] == {"text": [], "answer_start": []}


def test_rows_have_locations() -> None:
    assert [where for where, _ in read('{"a": 1}\n\n{"a":\n2}\n{"a": 3}')] == ["x.json:1", "x.json:3", "x.json:5"]
    assert [where for where, _ in read('{"data": [{}, {}]}')] == ["x.json: data[0]", "x.json: data[1]"]


@given(
    st.lists(st.dictionaries(st.text('ab[]{}"\\\n', max_size=3), VALUES, max_size=3), min_size=1, max_size=5),
    st.sampled_from([None, "data", "rows"]),
    st.sampled_from([1, 4]),
)
def test_rows_of_documents_name_their_line(rows: list[dict[str, Any]], key: str | None, indent: int) -> None:
    text = json.dumps(rows if key is None else {"version": "[{", key: rows}, indent=indent)
    depth = 1 if key is None else 2
    opening = [
        i
        for i, line in enumerate(text.split("\n"), 1)
        if line in (" " * indent * depth + "{", " " * indent * depth + "{}", " " * indent * depth + "{},")
    ]
    place = "x.json" if key is None else f"x.json: {key}"
    assert [where for where, _ in read(text)] == [f"{place}[{i}] (line {line})" for i, line in enumerate(opening)]


def test_location_lacks_the_line_if_other_objects_are_as_deep() -> None:
    places = [where for where, _ in read('{"meta": {"made": {}},\n"data": [{}, {}]}')]
    assert places == ["x.json: data[0]", "x.json: data[1]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (pandas.DataFrame(ROWS).to_json(orient="values"), "list of lists, without names of columns"),
        (pandas.DataFrame(ROWS, index=["x", "y", "z"]).to_json(), "object of objects, which may be rows or columns"),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', "several lists of objects"),
        ('{"a": [1, 2], "b": [1]}', "columns of different lengths"),
        ('{"columns": ["a"], "data": [[1, 2]]}', "data[0] is not a list of 1 values"),
        ('{"columns": ["a", "a"], "data": [[1, 2]]}', "two columns of the same name"),
        ('{"text": "a"}', "is not a list of objects"),
        ('[{"a": 1}, 5]', "x.json[1] is not an object (got int)"),
        ('{"a": 1}\n{"a": 1, "a": 2}', "x.json:2 has the key 'a' twice"),
        ('{"a": 1}\n{"a": ' + "1" * 5000 + "}", "x.json:2 has a number of 5,000 digits"),
        ('{"a": 1}\n' + "[" * 100_000, "x.json:2 is nested deeper than 200 levels"),
        ('{"a": 1}\n{"a": ' + "[" * 250 + "]" * 250 + "}", "x.json:2 is out of bounds"),
        ('{"a": 1}\n{"a": 2', "x.json:2 is not JSON"),
        ("<!DOCTYPE html>", "x.json:1 is not JSON"),
        ('{"data": [{"paragraphs": [{"qas": 5}]}]}', "data[0].paragraphs[0].qas is not a list"),
    ],
)
def test_content_without_rows_is_refused(text: str, words: str) -> None:
    with pytest.raises(LoraFtError) as caught:
        rows_of(text)
    assert words in caught.value.message and caught.value.remedy


@pytest.mark.parametrize(("text", "field"), [('[{"a": 1}]', "a"), ('{"b": []}', "a"), ('{"a": 5}', "a")])
def test_a_field_without_rows_is_refused(text: str, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        rows_of(text, field=field)
    assert "data.field" in caught.value.remedy
