"""Rows become examples: cells are checked, prompts filled, and likely mistakes counted."""

from __future__ import annotations

import datetime
import json
import math
import unicodedata
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.examples import Example
from lora_ft.data.splits import load_splits, with_labels
from lora_ft.tasks.files import load_task
from tests.lora_ft.data.task_rows import Load, MakeTask, numbered, prompts


def test_row_becomes_a_prompt_a_target_and_a_reference(load: Load) -> None:
    row = {"text": "hi", "answer": 7, "id": "x"}
    assert load_splits(load([row])).train == [Example("say: hi", "7", ("7",), row)]


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"prompt": "{text} {date}"}, "train"),
        ({"data": {"target": "date"}}, "train"),
        ({"data": {"references": "date"}}, "validation"),
    ],
)
def test_missing_column_is_refused_with_the_existing_ones(
    make_task: MakeTask, change: dict[str, Any], split: str
) -> None:
    """Training rows may lack references: nothing is scored against them."""
    path = make_task(**change)
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(path))
    assert caught.value.message == f"{path.parent / split}.jsonl:1 has no column 'date'"
    assert "text, answer" in caught.value.remedy


def test_missing_column_that_looks_like_one_of_the_row_is_shown_by_its_codes(load: Load) -> None:
    """macOS writes accents as separate characters, so both names look the same in a message."""
    rows = [{"text": "a", unicodedata.normalize("NFD", "Größe"): "b"}]
    with pytest.raises(
        UsageError, match=r"has no column 'Gr\\xf6\\xdfe'; it has 'Gro\\u0308\\xdfe', which looks alike"
    ):
        load_splits(load(rows, target="Größe"))


EMPTY: list[Any] = ["", "  \n", None, math.nan]


@pytest.mark.parametrize("column", ["text", "answer"])
@pytest.mark.parametrize("cell", EMPTY, ids=["empty", "blank", "null", "nan"])
def test_empty_cell_is_refused_with_its_line_or_left_out(load: Load, column: str, cell: Any) -> None:
    rows = [*numbered(2), {"text": "t", "answer": "a", column: cell}]
    with pytest.raises(LoraFtError) as caught:
        load_splits(load(rows))
    assert f"rows.jsonl:3: column '{column}' is empty" in caught.value.message
    assert "data.skip_empty=true" in caught.value.remedy
    assert prompts(load_splits(load(rows, skip_empty=True)).train) == ["say: row 0", "say: row 1"]


def test_short_row_of_a_csv_file_is_refused(load: Load) -> None:
    task = load([], train="rows.csv")
    assert task.data.root is not None
    (task.data.root / "rows.csv").write_text("text,answer\na,b\nc\n", encoding="utf-8")
    with pytest.raises(LoraFtError, match=r"rows\.csv:3 has fewer cells than the header \(1, not 2\)"):
        load_splits(task)


def test_null_of_a_parquet_file_is_refused(load: Load) -> None:
    task = load([], train="rows.parquet")
    assert task.data.root is not None
    table = pyarrow.table({"text": ["a", "b"], "answer": [1.5, None]})
    pyarrow.parquet.write_table(table, task.data.root / "rows.parquet")
    with pytest.raises(LoraFtError, match=r"rows\.parquet\[1\]: column 'answer' is empty"):
        load_splits(task)


def test_zero_and_false_are_not_empty(load: Load) -> None:
    assert [e.target for e in load_splits(load([{"text": 0, "answer": False}])).train] == ["false"]


def test_unused_columns_may_be_empty(load: Load) -> None:
    assert len(load_splits(load([{"text": "a", "answer": "b", "note": None}])).train) == 1


def test_only_empty_rows_are_refused_even_with_skip_empty(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.train: every row has an empty cell"):
        load_splits(load([{"text": "a", "answer": ""}], skip_empty=True))


def test_references_are_all_texts_of_the_list(load: Load) -> None:
    rows = [
        {"text": "a", "answer": "t", "refs": ["x", "", None, "y"]},
        {"text": "b", "answer": "t", "refs": "z"},
    ]
    train = load_splits(load(rows, references="refs")).train
    assert [(example.target, example.references) for example in train] == [("t", ("x", "y")), ("t", ("z",))]


def test_empty_references_are_counted(load: Load) -> None:
    rows = [{"text": "a", "answer": "t", "refs": ["x", None, " "]}, {"text": "b", "answer": "t", "refs": ["y"]}]
    splits = load_splits(load(rows, references="refs"))
    assert [example.references for example in splits.train] == [("x",), ("y",)]
    assert splits.warnings == ["train: column 'refs': 2 empty or null references in 2 rows are left out"]


@pytest.mark.parametrize("references", [[], ["", None], None, " "])
def test_row_without_a_reference_is_refused(load: Load, references: Any) -> None:
    with pytest.raises(LoraFtError, match="column 'refs' is empty"):
        load_splits(load([{"text": "a", "answer": "t", "refs": references}], references="refs"))


@pytest.mark.parametrize("value", [{"b": [1, None]}, '{"b":[1,null]}'])
def test_json_target_may_be_text_or_a_value(make_task: MakeTask, value: Any) -> None:
    path = make_task(codec="json")
    (path.parent / "train.jsonl").write_text(json.dumps({"text": "a", "answer": value}), encoding="utf-8")
    (example,) = load_splits(load_task(path), ["train"]).train
    assert example.target == '{"b": [1, null]}' and example.references == (example.target,)


def test_target_that_is_not_json_is_refused_with_its_line(make_task: MakeTask) -> None:
    path = make_task(codec="json")
    rows = [{"text": "a", "answer": "1"}, {"text": "b", "answer": "{"}]
    (path.parent / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(LoraFtError, match=r"train\.jsonl:2: column 'answer': the text is not JSON .*use codec: text"):
        load_splits(load_task(path), ["train"])


@pytest.mark.parametrize(
    ("row", "words", "remedy"),
    [
        ({"text": {"en": "a"}, "answer": "b"}, "column 'text' holds an object (keys: en), not text", "text.en"),
        ({"text": "a", "answer": {"text": ["b"]}}, "column 'answer' holds an object", "answer.text[0]"),
        ({"text": "a", "answer": ["b"]}, "column 'answer' holds a list, not text", "data.references"),
        ({"text": "a", "answer": "b", "refs": {"text": ["b"]}}, "column 'refs' holds an object", "use refs.text"),
        ({"text": "a", "answer": "b", "refs": [{"text": "b"}]}, "column 'refs' holds an object", "refs.text"),
        ({"text": "a", "answer": "b", "refs": [["b"]]}, "column 'refs' holds a list", "refs"),
        ({"text": "a", "answer": float("inf")}, "column 'answer' holds the number inf", "finite"),
        ({"text": "a\ud83d", "answer": "b"}, "column 'text' holds half a character", "UTF-8"),
        ({"text": "a", "answer": "\udc00"}, "column 'answer' holds half a character", "UTF-8"),
        ({"text": "a", "answer": "b", "refs": ["c", "\udc00"]}, "column 'refs' holds half a character", "UTF-8"),
    ],
)
def test_cell_without_text_is_refused_with_row_column_and_remedy(
    load: Load, row: dict[str, Any], words: str, remedy: str
) -> None:
    task = load([{"text": "x", "answer": "y", "refs": "z"}, {"refs": "z", **row}], references="refs")
    with pytest.raises(LoraFtError) as caught:
        load_splits(task)
    assert f"rows.jsonl:2: {words}" in caught.value.message and remedy in caught.value.remedy


def test_half_a_character_in_an_unused_column_is_accepted(load: Load) -> None:
    assert len(load_splits(load([{"text": "x", "answer": "y", "note": "\ud83d"}])).train) == 1


def test_paths_select_nested_targets_and_references(load: Load) -> None:
    row = {"text": "a", "answers": {"text": ["b", 3, True], "answer_start": [0]}}
    (example,) = load_splits(load([row], target="answers.text[0]", references="answers.text")).train
    assert (example.target, example.references) == ("b", ("b", "3", "true"))


def test_missing_path_is_refused_with_the_existing_keys(load: Load) -> None:
    with pytest.raises(UsageError, match=r"has no column 'answer\.txt'") as caught:
        load_splits(load([{"text": "a", "answer": {"text": "b"}}], target="answer.txt"))
    assert "answer (text)" in caught.value.remedy


def test_undetected_delimiter_is_suggested(load: Load) -> None:
    with pytest.raises(UsageError, match="has no column 'text'") as caught:
        load_splits(load([{"text^answer": "a^b"}]))
    assert "set data.delimiter" in caught.value.remedy
    with pytest.raises(UsageError, match="has no column 'text'") as caught:
        load_splits(load([{"answer": "b"}]))
    assert "data.delimiter" not in caught.value.remedy


def test_empty_list_of_answers_is_an_empty_cell(load: Load) -> None:
    rows = [{"text": "a", "answers": {"text": ["b"]}}, {"text": "c", "answers": {"text": []}}]
    options: dict[str, Any] = {"target": "answers.text[0]", "references": "answers.text"}
    with pytest.raises(LoraFtError, match=r"rows\.jsonl:2: column 'answers\.text\[0\]' is empty"):
        load_splits(load(rows, **options))
    splits = load_splits(load(rows, skip_empty=True, **options))
    assert len(splits.train) == 1 and splits.left_out == {"train": 1}


def test_rows_left_out_are_counted_by_column_before_the_cut(load: Load) -> None:
    rows = [{"text": "" if i % 2 else f"row {i}", "answer": "a" if i else None} for i in range(20)]
    splits = load_splits(load(rows, skip_empty=True, split={"validation": 0.5}))
    assert splits.left_out == {"train": 11} and (len(splits.train), len(splits.validation)) == (5, 4)
    assert splits.warnings == [
        "train: 11 of 20 rows left out (skip_empty): column 'answer' is empty in 1 and column 'text' is empty in 10"
    ]


def test_words_for_missing_values_are_counted(load: Load) -> None:
    words = ("nan", "NULL", "\\N", "none of them", "nano")
    rows = [*numbered(3), *({"text": "t", "answer": word} for word in words)]
    (warning,) = load_splits(load(rows)).warnings
    assert "column 'answer': 3 of 8 cells are 'nan', 'NULL' or '\\N' as text" in warning
    assert "rows.jsonl:4" in warning


def test_label_may_be_a_word_for_missing_values(make_task: MakeTask) -> None:
    path = make_task(labels=["none", "some"], data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text": "a", "answer": "none"}, {"text": "b", "answer": "some"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_splits(load_task(path)).warnings == []


def test_missing_values_are_counted_although_they_become_labels(make_task: MakeTask) -> None:
    """`labels: auto` would learn a label "nan" in silence."""
    path = make_task(labels="auto", data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text": "a", "answer": "nan"}, {"text": "b", "answer": "some"}, {"text": "c", "answer": "none"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (warning,) = load_splits(with_labels(load_task(path))).warnings
    assert "column 'answer': 1 of 3 cells are 'nan' as text" in warning


@pytest.mark.parametrize("labels", ["auto", ["no", "yes"]])
def test_blanks_around_a_label_are_not_learned(make_task: MakeTask, labels: Any) -> None:
    """T5's tokenizer has a token for a blank at the end, and the codec `text` a mark."""
    path = make_task(labels=labels, data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text": "a", "answer": "yes "}, {"text": "b", "answer": " no\n"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [example.target for example in load_splits(load_task(path)).train] == ["yes", "no"]
    assert [example.references for example in load_splits(load_task(path)).train] == [("yes",), ("no",)]


def test_optional_column_without_rows_is_reported(make_task: MakeTask) -> None:
    path = make_task(prompt="{text} {txet?}", data={"validation": None, "test": None})
    assert load_splits(load_task(path)).warnings == [
        "train: no row has the column 'txet', which is optional in the prompt"
    ]


def test_json_target_with_a_date_is_refused(make_task: MakeTask) -> None:
    path = make_task(codec="json", data={"train": "rows.parquet", "validation": None, "test": None})
    column = pyarrow.array([{"when": datetime.date(2023, 1, 1), "n": 1}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "answer": column}), path.parent / "rows.parquet")
    with pytest.raises(UsageError, match="column 'answer' holds a date, not text"):
        load_splits(load_task(path), ["train"])


def test_optional_column_may_have_a_question_mark_in_its_name(load: Load, make_task: MakeTask) -> None:
    path = make_task(prompt="{text?} {x?}", data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text?": "a", "answer": "b", "x": "nan"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (warning,) = load_splits(load_task(path)).warnings
    assert "column 'x': 1 of 1 cells are 'nan' as text" in warning


@pytest.mark.parametrize("text", ["{'text': ['Tom'], 'answer_start': [1]}", "['Tom', 'him']", '["Tom"]', '{"text": 1}'])
def test_references_that_are_lists_as_text_are_reported(load: Load, text: str) -> None:
    rows = [{"text": "a", "answer": "Tom", "refs": text}]
    (warning,) = load_splits(load(rows, references="refs")).warnings
    assert "column 'refs': 1 of 1 cells are lists or objects written as text, first in" in warning


@pytest.mark.parametrize("text", ['{"name": "Tom"}', "[laughs] 'no'", "{x}", "it's [1] ['a']"])
def test_targets_that_resemble_lists_are_not_reported(load: Load, text: str) -> None:
    assert load_splits(load([{"text": "a", "answer": text}])).warnings == []
