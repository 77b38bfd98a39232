"""CSV in the dialects of common programs: equal rows from each, or an error with the line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.formats.content import Content
from lora_ft.data.formats.delimited import read_delimited

TEXT = st.text(alphabet="ab ,;\t|\"'\n\r\\éñ", max_size=8)
TABLES = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6)
NAMES = ["id", "text", "a label"]


def rows_of(text: str | bytes, name: str = "x.csv", **options: str) -> list[dict[str, str]]:
    data = text if isinstance(text, bytes) else text.encode()
    return [row for _, row in read_delimited(Content(Path(name), name, data), **options)]


def written(rows: list[tuple[str, ...]], **dialect: object) -> str:
    out = io.StringIO()
    csv.writer(out, **dialect).writerows([NAMES, *rows])  # type: ignore[call-overload]
    return out.getvalue()


@given(
    TABLES, st.sampled_from(",;\t|"), st.sampled_from(["x.csv", "x.tsv", "x.csv.gz"]), st.sampled_from(["\r\n", "\n"])
)
def test_the_delimiter_is_found(rows: list[tuple[str, ...]], delimiter: str, name: str, end: str) -> None:
    text = written(rows, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=end)
    assert rows_of(text, name) == [dict(zip(NAMES, row, strict=True)) for row in rows]


@given(TABLES, st.sampled_from(",;\t|"))
@example([('"', "||\r|;", "")], "|")
def test_escaped_quotes_are_quotes(rows: list[tuple[str, ...]], delimiter: str) -> None:
    text = written(rows, delimiter=delimiter, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\")
    try:
        parsed = rows_of(text)
    except LoraFtError:
        return
    # If no quote is escaped, backslashes look the same in both dialects.
    if '\\"' in text.replace("\\\\", ""):
        assert parsed == [dict(zip(NAMES, row, strict=True)) for row in rows]


def test_pandas_escapes_without_quotes() -> None:
    table = pandas.DataFrame({"text": ['say "hi"', "back\\slash"], "label": ["1", '"q"']})
    text = table.to_csv(index=False, doublequote=False, escapechar="\\")
    assert rows_of(text) == table.to_dict("records")


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('text,label\n"C:\\",1\n', {"text": "C:\\", "label": "1"}),
        ('text,label\n"{""a"": ""b\\""c""}",1\n', {"text": '{"a": "b\\"c"}', "label": "1"}),
        ('text\tlabel\nSchr\\"odinger \\emph{x}\t1\n', {"text": 'Schr\\"odinger \\emph{x}', "label": "1"}),
        ('text,label\n"say \\"hi\\", C:\\temp",1\n', {"text": 'say "hi", C:\\temp', "label": "1"}),
        ('text\tlabel\n"he said\t1\n', {"text": '"he said', "label": "1"}),
        ("text , label\na b,1\n", {"text": "a b", "label": "1"}),
        ('id, text\n1, "a, b"\n', {"id": "1", "text": "a, b"}),
        ('id,text\n1, "a"\n', {"id": "1", "text": "a"}),
        ('id,text\n1,"say, ""a"", "\n', {"id": "1", "text": 'say, "a", '}),
        (",text,\n0,a,\n", {"text": "a"}),
        ("sep=;\r\ntext;label\r\na, b;1\r\n", {"text": "a, b", "label": "1"}),
        ('"sep=|"\r\ntext|label\r\na,b|1\r\n', {"text": "a,b", "label": "1"}),
        ("text;price\nx;1,5\n", {"text": "x", "price": "1,5"}),
        ("text,label\nx;y,1;2\n", {"text": "x;y", "label": "1;2"}),
        ("text,label\ra,1\r", {"text": "a", "label": "1"}),
        ("text\n\nhello world\n", {"text": "hello world"}),
        ('text\n"say \\"hi\\" now"\n', {"text": 'say "hi" now'}),
    ],
)
def test_dialects_of_programs_are_detected(text: str, row: dict[str, str]) -> None:
    assert rows_of(text) == [row]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('text\tlabel\n"yes\t1\nno"\t2\nsay "hi"\t1', [('"yes', "1"), ('no"', "2"), ('say "hi"', "1")]),
        ('text\tlabel\nsay "hi"\t"Yes."\n', [('say "hi"', '"Yes."')]),
        ('text\tlabel\n"say ""hi"""\t"a\tb\nc"\n', [('say "hi"', "a\tb\nc")]),
        ('text\tlabel\n"C:\\\\"\t"say \\"hi\\""\n', [("C:\\", 'say "hi"')]),
    ],
)
def test_quotes_between_tabs_are_plain_if_an_unquoted_cell_has_one(text: str, rows: list[tuple[str, str]]) -> None:
    assert [tuple(row.values()) for row in rows_of(text, "x.tsv")] == rows


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('id|text|more\n"\\""|"||\r|;"|""\n', "JSON Lines"),
        ('text\tlabel\n"yes\t1\nno"\t2\n', "JSON Lines"),
        ("a,b;c\n1,2;3\n", "set data.delimiter"),
    ],
)
def test_two_dialects_with_different_rows_are_refused(text: str, remedy: str) -> None:
    with pytest.raises(UsageError, match="fits two") as caught:
        rows_of(text)
    assert remedy in caught.value.remedy


def test_delimiter_and_encoding_may_be_set() -> None:
    assert rows_of("a,b^c\n1,2^3\n", delimiter="^") == [{"a,b": "1,2", "c": "3"}]
    assert rows_of("text,label\ncafé – x,1\n".encode("cp1252"), encoding="cp1252")[0]["text"] == "café – x"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_found_by_its_mark_or_its_zeros(encoding: str) -> None:
    assert rows_of("text,label\näöü 漢字,1\n".encode(encoding)) == [{"text": "äöü 漢字", "label": "1"}]


def test_byte_order_mark_overrides_the_encoding() -> None:
    assert rows_of("text,b\nä,1\n".encode("utf-8-sig"), encoding="cp1252") == [{"text": "ä", "b": "1"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n\n4,5\n", "x.csv:4 has fewer cells than the header (2, not 3)"),
        ('a,b\n"x\ny",1\n4,5,6\n', "x.csv:4 has more cells than the header (3, not 2)"),
        ("a, a\n1,2\n", "x.csv:1 has two columns named 'a'"),
        ('a,b\n1,"x\n2,y\n', "x.csv:2 is damaged (unexpected end of data)"),
        ('a,b\n1,"x"y\n', "x.csv:2 is damaged"),
        ("a,b\n1,2\na,b\n3,4\n", "x.csv:3 repeats the header"),
        ("a,b\n1,2\n\ufeffa,b\n3,4\n", "x.csv:3 repeats the header"),
        ("a    ,b   \n-----,----\n1    ,2   \n", "x.csv:2 is a rule under the header"),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |\n", "x.csv:2 is a rule under the header"),
        ("sep=;\na;b\n1;2;3\n", "x.csv:3 has more cells"),
        ("text\nhello, world\n", "x.csv:2 has more cells than the header (2, not 1)"),
    ],
)
def test_error_has_its_line(text: str, words: str) -> None:
    with pytest.raises(LoraFtError) as caught:
        rows_of(text)
    assert words in caught.value.message and caught.value.remedy


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a,b"])
def test_a_file_without_rows_has_none(text: str) -> None:
    assert rows_of(text) == []
