"""Readers: every format returns the same rows, and errors name the file and the line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.readers import READERS, read_rows

ROWS = [
    {"text": "plain", "answer": "one"},
    {"text": 'quotes " and, commas\tand tabs', "answer": "two\nlines"},
    {"text": "ümlaut 漢字 🙂", "answer": "\u2028 is no new row"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            # Quoting all cells, as a spreadsheet does; cells are then text whatever they hold.
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of(root: Path, names: str | list[str]) -> list[dict[str, str]]:
    return [row for _, row in read_rows(root, names, "data.train")]


@pytest.mark.parametrize("ending", list(READERS))
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"rows{ending}", ROWS)
    assert rows_of(tmp_path, f"rows{ending}") == ROWS


def test_endings_are_read_in_any_case(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS).rename(tmp_path / "rows.JSONL")
    assert rows_of(tmp_path, "rows.JSONL") == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_byte_order_mark_does_not_become_part_of_the_first_column(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows{ending}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows_of(tmp_path, path.name) == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_windows_line_ends_are_removed(tmp_path: Path, ending: str) -> None:
    plain = [{"text": "a", "answer": "b"}, {"text": "c", "answer": "d"}]
    path = write(tmp_path / f"rows{ending}", plain)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert rows_of(tmp_path, path.name) == plain


def test_globs_and_lists_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["b.jsonl", "a.jsonl", "sub/c.jsonl"]):
        write(tmp_path / name, [{"text": str(i)}])
    assert [row["text"] for row in rows_of(tmp_path, "*.jsonl")] == ["1", "0"]
    assert [row["text"] for row in rows_of(tmp_path, ["b.jsonl", "sub/*.jsonl"])] == ["0", "2"]
    assert sorted(row["text"] for row in rows_of(tmp_path, "**/*.jsonl")) == ["0", "1", "2"]
    assert rows_of(Path("/elsewhere"), str(tmp_path / "a.jsonl")) == [{"text": "1"}]


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path: Path) -> None:
    write(tmp_path / "rows[1].jsonl", ROWS)
    assert rows_of(tmp_path, "rows[1].jsonl") == ROWS


def test_rows_have_locations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    assert [where for where, _ in read_rows(tmp_path, "rows.jsonl", "k")] == [f"{path}:1", f"{path}:3"]
    csv_path = tmp_path / "rows.csv"
    csv_path.write_text("text\na\nb\n", encoding="utf-8")
    assert [where for where, _ in read_rows(tmp_path, "rows.csv", "k")] == [f"{csv_path}:2", f"{csv_path}:3"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "a.jsonl:2 is not UTF-8"),
        ("a.json", b'[\n\n{"text": "\xff"}]', "a.json:3 is not UTF-8"),
        ("a.csv", b"text\nok\ncaf\xe9\n", "a.csv:3 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', "a.jsonl:2 is not JSON"),
        ("a.json", b'[{"text": "a"},\n{"text": ', "a.json:2 is not JSON"),
        ("a.csv", b'text,answer\na,b\nc,"d', "is damaged (unexpected end of data)"),
        ("a.csv", b"text,answer\na,b,c\n", "a.csv:2 has more cells than the header"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl:2 is not an object (got list)"),
        ("a.json", b'[{"text": "a"}, "b"]', "a.json[1] is not an object (got str)"),
        ("a.json", b'{"text": "a"}', "a.json is not a list of objects"),
        ("a.parquet", b"PAR1", "a.parquet is not a complete parquet file"),
        ("a.parquet", b"", "a.parquet is not a complete parquet file"),
    ],
)
def test_damaged_file_is_refused_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoraFtError) as caught:
        read_rows(tmp_path, name, "data.train")
    assert words in caught.value.message and caught.value.message.startswith(str(tmp_path))
    assert caught.value.remedy and not isinstance(caught.value, UsageError)


def test_a_parquet_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LoraFtError, match="is not a complete parquet file"):
        read_rows(tmp_path, "rows.parquet", "data.train")


@pytest.mark.parametrize("name", ["none.jsonl", "*.jsonl", "none/rows.csv"])
def test_a_missing_file_is_refused_with_the_key_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_rows(tmp_path, name, "data.validation")
    assert caught.value.message == f"data.validation: no file {tmp_path / name}"
    assert "data.root" in caught.value.remedy


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.XLS", "rows.ods"])
def test_a_spreadsheet_is_refused_with_the_format_to_save_it_in(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UsageError, match="is a spreadsheet, not text; save the sheet as CSV in UTF-8"):
        read_rows(tmp_path, name, "data.train")


@pytest.mark.parametrize("name", ["rows.docx", "rows.txt", "rows"])
def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="has an unsupported format") as caught:
        read_rows(tmp_path, name, "data.train")
    assert all(ending in caught.value.remedy for ending in READERS)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['"', '""', "a\r\nb", "\n", "\r", "\x85\u2028\x0b", ",;\t", "\ufeff", " padded ", "\x00"]
)


@pytest.mark.parametrize("ending", list(READERS))
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"text": TEXT, "answer": TEXT}), min_size=1, max_size=8))
def test_any_text_survives_writing_and_reading(
    ending: str, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"survives{ending}", rows)
    assert rows_of(path.parent, path.name) == rows


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("rows.csv", "text,answer\nfür,a\n".encode("cp1252"), "save the file as UTF-8"),
        ("rows.csv", b"text,answer\na,b,c\n", "quote cells that hold the delimiter"),
        ("rows.csv", b"a,b;c\n1,2;3\n", "write its rows as JSON Lines"),
        ("rows.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "write its rows as JSON Lines"),
    ],
    ids=["encoding", "cells", "delimiter", "field"],
)
def test_remedy_for_the_file_of_an_option_names_no_key_of_a_task(
    tmp_path: Path, name: str, content: bytes, remedy: str
) -> None:
    """`init --data` and `generate --input` have no task in which data.encoding could be set."""
    (tmp_path / name).write_bytes(content)
    errors = []
    for key in ("--data", "data.train"):
        with pytest.raises(LoraFtError) as caught:
            read_rows(tmp_path, name, key)
        errors.append(caught.value)
    assert errors[0].remedy == remedy and "set data." in errors[1].remedy
    assert errors[0].message == errors[1].message and type(errors[0]) is type(errors[1])
