"""Rows become examples: checked cell by cell, split once and for all, limited, and put into the prompt."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.hub import hub_trouble
from lora_ft.data.splits import Example, load_splits, require, training_examples
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task

MakeTask = Callable[..., Path]
Rows = list[dict[str, Any]]
Load = Callable[..., Task]


@pytest.fixture
def load(make_task: MakeTask) -> Load:
    """A task over the given training rows alone; keyword arguments are of its data section."""

    def make(rows: Rows, **data: Any) -> Task:
        path = make_task(data={"train": "rows.jsonl", "validation": None, "test": None, **data})
        (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return load_task(path)

    return make


@pytest.fixture
def no_cached_trouble() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


def numbered(count: int) -> Rows:
    return [{"text": f"row {i}", "answer": f"a{i}"} for i in range(count)]


def prompts(examples: list[Example]) -> list[str]:
    return [example.prompt for example in examples]


def test_a_row_becomes_a_prompt_a_target_and_its_reference(load: Load) -> None:
    row = {"text": "hi", "answer": 7, "id": "x"}
    assert load_splits(load([row])).train == [Example("say: hi", "7", ("7",), row)]


def test_given_splits_are_read_as_they_are(make_task: MakeTask) -> None:
    splits = load_splits(load_task(make_task(rows=5)))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [5, 6, 6]
    assert all(prompt.startswith("say: v") for prompt in prompts(splits.validation))


def test_splits_that_are_not_asked_for_stay_empty_and_unread(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"train": "missing.jsonl"}))
    splits = load_splits(task, ["test"])
    assert not splits.train and not splits.validation and len(splits.test) == 6


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"prompt": "{text} {date}"}, "train"),
        ({"data": {"target": "date"}}, "train"),
        ({"data": {"references": "date"}}, "validation"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(
    make_task: MakeTask, change: dict[str, Any], split: str
) -> None:
    """Training rows may lack references: nothing is scored against them."""
    path = make_task(**change)
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(path))
    assert caught.value.message == f"{path.parent / split}.jsonl:1 has no column 'date'"
    assert "text, answer" in caught.value.remedy


EMPTY: list[Any] = ["", "  \n", None, math.nan]


@pytest.mark.parametrize("column", ["text", "answer"])
@pytest.mark.parametrize("cell", EMPTY, ids=["empty", "blank", "null", "nan"])
def test_an_empty_cell_is_refused_with_its_line_or_left_out(load: Load, column: str, cell: Any) -> None:
    rows = [*numbered(2), {"text": "t", "answer": "a", column: cell}]
    with pytest.raises(LoraFtError) as caught:
        load_splits(load(rows))
    assert f"rows.jsonl:3: column '{column}' is empty" in caught.value.message
    assert "data.skip_empty=true" in caught.value.remedy
    assert prompts(load_splits(load(rows, skip_empty=True)).train) == ["say: row 0", "say: row 1"]


def test_a_short_row_of_a_csv_table_is_refused(load: Load) -> None:
    task = load([], train="rows.csv")
    assert task.data.root is not None
    (task.data.root / "rows.csv").write_text("text,answer\na,b\nc\n", encoding="utf-8")
    with pytest.raises(LoraFtError, match=r"rows\.csv:3 has fewer cells than the header \(1, not 2\)"):
        load_splits(task)


def test_a_null_of_a_parquet_table_is_refused_too(load: Load) -> None:
    task = load([], train="rows.parquet")
    assert task.data.root is not None
    table = pyarrow.table({"text": ["a", "b"], "answer": [1.5, None]})
    pyarrow.parquet.write_table(table, task.data.root / "rows.parquet")
    with pytest.raises(LoraFtError, match=r"rows\.parquet\[1\]: column 'answer' is empty"):
        load_splits(task)


def test_zero_and_false_are_no_empty_cells(load: Load) -> None:
    assert [e.target for e in load_splits(load([{"text": 0, "answer": False}])).train] == ["false"]


def test_columns_the_task_does_not_name_may_be_empty(load: Load) -> None:
    assert len(load_splits(load([{"text": "a", "answer": "b", "note": None}])).train) == 1


def test_rows_that_are_all_empty_are_refused_even_when_such_are_skipped(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.train: every row has an empty cell"):
        load_splits(load([{"text": "a", "answer": ""}], skip_empty=True))


def test_a_file_without_rows_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.train: rows\.jsonl holds no rows"):
        load_splits(load([]))


def test_references_are_all_texts_of_the_list_and_the_target_stays(load: Load) -> None:
    rows = [
        {"text": "a", "answer": "t", "refs": ["x", "", None, "y"]},
        {"text": "b", "answer": "t", "refs": "z"},
    ]
    train = load_splits(load(rows, references="refs")).train
    assert [(example.target, example.references) for example in train] == [("t", ("x", "y")), ("t", ("z",))]


def test_empty_references_beside_others_are_counted(load: Load) -> None:
    rows = [{"text": "a", "answer": "t", "refs": ["x", None, " "]}, {"text": "b", "answer": "t", "refs": ["y"]}]
    splits = load_splits(load(rows, references="refs"))
    assert [example.references for example in splits.train] == [("x",), ("y",)]
    assert splits.warnings == ["train: column 'refs': 2 references of 2 rows are empty or null, and are left out"]


@pytest.mark.parametrize("references", [[], ["", None], None, " "])
def test_a_row_without_any_reference_is_refused(load: Load, references: Any) -> None:
    with pytest.raises(LoraFtError, match="column 'refs' is empty"):
        load_splits(load([{"text": "a", "answer": "t", "refs": references}], references="refs"))


def test_limits_take_the_first_rows_of_each_split(make_task: MakeTask) -> None:
    everything = load_splits(load_task(make_task()))
    limited = load_splits(load_task(make_task(data={"limit": {"train": 3, "test": 2, "validation": 99}})))
    assert limited.train == everything.train[:3]
    assert limited.test == everything.test[:2]
    assert limited.validation == everything.validation


def test_a_cut_is_seventy_to_thirty_disjoint_and_complete(load: Load) -> None:
    splits = load_splits(load(numbered(50), split={"validation": 0.1, "test": 0.2}))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [35, 5, 10]
    together = [*prompts(splits.train), *prompts(splits.validation), *prompts(splits.test)]
    assert sorted(together) == sorted(f"say: row {i}" for i in range(50))
    assert splits.overlap == 0


def test_a_cut_is_the_same_for_a_seed_and_another_for_another(load: Load) -> None:
    def cut(seed: int) -> list[list[str]]:
        splits = load_splits(load(numbered(50), split={"validation": 0, "test": 0.3, "seed": seed}))
        return [prompts(splits.train), prompts(splits.test)]

    assert cut(1) == cut(1)
    assert sorted(cut(1)[1]) != sorted(cut(2)[1])
    assert cut(1)[1] != [f"say: row {i}" for i in range(15)]


def test_a_split_read_by_itself_is_the_one_that_was_cut(load: Load) -> None:
    task = load(numbered(50), split={"validation": 0.1, "test": 0.2})
    whole = load_splits(task)
    assert load_splits(task, ["test"]).test == whole.test
    assert load_splits(task, ["validation"]).validation == whole.validation
    assert load_splits(task, ["train", "validation"]).train == whole.train


def test_only_missing_splits_are_cut(make_task: MakeTask) -> None:
    task = load_task(make_task(rows=40, data={"test": None, "split": {"validation": 0.5, "test": 0.25}}))
    splits = load_splits(task)
    given = load_splits(load_task(make_task(rows=40)))
    assert splits.validation == given.validation
    assert (len(splits.train), len(splits.test)) == (30, 10)


def test_a_cut_that_leaves_nothing_to_train_on_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.split leaves no training rows of 4"):
        load_splits(load(numbered(4), split={"validation": 0.5, "test": 0.5}))


def test_a_limit_counts_the_training_rows_that_the_cut_leaves(load: Load) -> None:
    splits = load_splits(load(numbered(50), split={"validation": 0.2}, limit={"train": 10}))
    assert (len(splits.train), len(splits.validation), splits.overlap) == (10, 10, 0)


def test_overlap_counts_the_prompts_seen_in_training(make_task: MakeTask) -> None:
    path = make_task()
    lines = (path.parent / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (path.parent / "validation.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    with open(path.parent / "test.jsonl", "a", encoding="utf-8") as file:
        file.write(lines[5] + "\n")
    assert load_splits(load_task(path)).overlap == 4


def test_a_split_that_a_job_needs_must_have_rows(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"test": None}))
    splits = load_splits(task)
    assert require(splits, "validation", task) == splits.validation
    with pytest.raises(UsageError, match="task 'tiny' has no test rows") as caught:
        require(splits, "test", task)
    assert "data.test" in caught.value.remedy and "data.split.test" in caught.value.remedy


HUB = {"hub": "someone/rows", "train": "train", "validation": "dev", "test": None}


def test_a_hub_data_set_without_a_hub_is_a_clear_error(make_task: MakeTask, no_cached_trouble: None) -> None:
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(make_task(data=HUB)))
    assert caught.value.message == "the data set someone/rows is on the hub, and HF_HUB_OFFLINE is set"
    assert "a local file in data.train" in caught.value.remedy


def test_a_hub_data_set_is_read_by_the_names_of_its_splits(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list([{"text": split, "answer": "a"}])

    monkeypatch.setattr("lora_ft.data.splits.require_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_splits(load_task(make_task(data=HUB | {"config": "en", "revision": "v1"})))
    assert asked == [("someone/rows", "en", "train", "v1"), ("someone/rows", "en", "dev", "v1")]
    assert prompts(splits.train) == ["say: train"] and prompts(splits.validation) == ["say: dev"]


def test_what_the_hub_says_is_passed_on(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ValueError("Unknown split 'train'.\nLong advice.")

    monkeypatch.setattr("lora_ft.data.splits.require_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(make_task(data=HUB)))
    assert caught.value.message == "data.train: cannot load someone/rows (Unknown split 'train'.)"


@pytest.mark.parametrize("value", [{"b": [1, None]}, '{"b":[1,null]}'])
def test_a_json_target_may_be_written_as_text_or_as_itself(make_task: MakeTask, value: Any) -> None:
    path = make_task(codec="json")
    (path.parent / "train.jsonl").write_text(json.dumps({"text": "a", "answer": value}), encoding="utf-8")
    (example,) = load_splits(load_task(path), ["train"]).train
    assert example.target == '{"b": [1, null]}' and example.references == (example.target,)


def test_a_row_whose_target_is_no_json_is_named(make_task: MakeTask) -> None:
    path = make_task(codec="json")
    rows = [{"text": "a", "answer": "1"}, {"text": "b", "answer": "{"}]
    (path.parent / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(LoraFtError, match=r"train\.jsonl:2: column 'answer': the text is not JSON .*codec: text takes"):
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
def test_what_is_no_text_is_refused_with_row_column_and_remedy(
    load: Load, row: dict[str, Any], words: str, remedy: str
) -> None:
    task = load([{"text": "x", "answer": "y", "refs": "z"}, {"refs": "z", **row}], references="refs")
    with pytest.raises(LoraFtError) as caught:
        load_splits(task)
    assert f"rows.jsonl:2: {words}" in caught.value.message and remedy in caught.value.remedy


def test_half_a_character_in_a_column_that_is_not_used_does_no_harm(load: Load) -> None:
    assert len(load_splits(load([{"text": "x", "answer": "y", "note": "\ud83d"}])).train) == 1


def test_paths_lead_into_targets_and_references(load: Load) -> None:
    row = {"text": "a", "answers": {"text": ["b", 3, True], "answer_start": [0]}}
    (example,) = load_splits(load([row], target="answers.text[0]", references="answers.text")).train
    assert (example.target, example.references) == ("b", ("b", "3", "true"))


def test_a_path_without_an_end_names_the_keys_there_are(load: Load) -> None:
    with pytest.raises(UsageError, match=r"has no column 'answer\.txt'") as caught:
        load_splits(load([{"text": "a", "answer": {"text": "b"}}], target="answer.txt"))
    assert "answer (text)" in caught.value.remedy


def test_a_delimiter_that_is_not_found_is_asked_for(load: Load) -> None:
    with pytest.raises(UsageError, match="has no column 'text'") as caught:
        load_splits(load([{"text^answer": "a^b"}]))
    assert "set data.delimiter" in caught.value.remedy
    with pytest.raises(UsageError, match="has no column 'text'") as caught:
        load_splits(load([{"answer": "b"}]))
    assert "data.delimiter" not in caught.value.remedy


def test_an_unanswered_question_is_an_empty_cell(load: Load) -> None:
    rows = [{"text": "a", "answers": {"text": ["b"]}}, {"text": "c", "answers": {"text": []}}]
    options: dict[str, Any] = {"target": "answers.text[0]", "references": "answers.text"}
    with pytest.raises(LoraFtError, match=r"rows\.jsonl:2: column 'answers\.text\[0\]' is empty"):
        load_splits(load(rows, **options))
    splits = load_splits(load(rows, skip_empty=True, **options))
    assert len(splits.train) == 1 and splits.left_out == {"train": 1}


def test_rows_left_out_are_counted_by_column_and_before_the_cut(load: Load) -> None:
    rows = [{"text": "" if i % 2 else f"row {i}", "answer": "a" if i else None} for i in range(20)]
    splits = load_splits(load(rows, skip_empty=True, split={"validation": 0.5}))
    assert splits.left_out == {"train": 11} and (len(splits.train), len(splits.validation)) == (5, 4)
    assert splits.warnings == [
        "train: 11 of 20 rows left out (skip_empty): column 'answer' is empty in 1 and column 'text' is empty in 10"
    ]


def test_missing_values_as_words_are_counted(load: Load) -> None:
    rows = [*numbered(3), *({"text": "t", "answer": word} for word in ("nan", "NULL", "None", "none of them", "nano"))]
    (warning,) = load_splits(load(rows)).warnings
    assert "column 'answer': 3 of 8 cells are 'nan', 'NULL' or 'None' as text" in warning
    assert "rows.jsonl:4" in warning


def test_a_label_that_is_a_word_for_missing_is_meant(make_task: MakeTask) -> None:
    path = make_task(labels=["none", "some"], data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text": "a", "answer": "none"}, {"text": "b", "answer": "some"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_splits(load_task(path)).warnings == []


def test_an_optional_column_that_no_row_has_is_said(make_task: MakeTask) -> None:
    path = make_task(prompt="{text} {txet?}", data={"validation": None, "test": None})
    assert load_splits(load_task(path)).warnings == [
        "train: no row has the column 'txet', which is optional in the prompt"
    ]


def test_splits_of_labels_are_stratified_and_oversampled(make_task: MakeTask) -> None:
    path = make_task(
        labels="auto",
        data={
            "train": "rows.jsonl",
            "validation": None,
            "test": None,
            "oversample": True,
            "split": {"validation": 0.2, "test": 0.2},
        },
    )
    rows = [{"text": f"row {i}", "answer": "rare" if i % 10 == 0 else "usual"} for i in range(50)]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = load_task(path)
    splits = load_splits(task)
    for name, rare, usual in (("train", 3, 27), ("validation", 1, 9), ("test", 1, 9)):
        targets = [example.target for example in splits[name]]
        assert (targets.count("rare"), targets.count("usual")) == (rare, usual)
    targets = [example.target for example in training_examples(task, splits)]
    assert (targets.count("rare"), targets.count("usual")) == (27, 27)
    assert load_splits(task, ["validation"]).validation == splits.validation


def test_oversampling_without_labels_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="oversample needs labels"):
        load_task(make_task(data={"oversample": True}))


@pytest.mark.parametrize(
    ("key", "value"), [("encoding", "rot13"), ("encoding", "nope"), ("delimiter", '"'), ("delimiter", ";;")]
)
def test_layouts_that_cannot_be_are_refused(make_task: MakeTask, key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"data.{key}"):
        load_task(make_task(data={key: value}))


@pytest.mark.parametrize("key", ["encoding", "delimiter", "field"])
def test_layouts_are_for_files_of_rows(make_task: MakeTask, key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is for files of rows"):
        load_task(make_task(data={"hub": "a/b", key: "," if key == "delimiter" else "utf-8"}))


def test_a_json_target_holds_json_alone(make_task: MakeTask) -> None:
    path = make_task(codec="json", data={"train": "rows.parquet", "validation": None, "test": None})
    column = pyarrow.array([{"when": datetime.date(2023, 1, 1), "n": 1}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "answer": column}), path.parent / "rows.parquet")
    with pytest.raises(UsageError, match="column 'answer' holds a date, not text"):
        load_splits(load_task(path), ["train"])


def test_an_optional_column_with_a_question_mark_in_its_name_is_there(load: Load, make_task: MakeTask) -> None:
    path = make_task(prompt="{text?} {x?}", data={"train": "rows.jsonl", "validation": None, "test": None})
    rows = [{"text?": "a", "answer": "b", "x": "nan"}]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (warning,) = load_splits(load_task(path)).warnings
    assert "column 'x': 1 of 1 cells are 'nan' as text" in warning


@pytest.mark.parametrize("text", ["{'text': ['Tom'], 'answer_start': [1]}", "['Tom', 'him']", '["Tom"]', '{"text": 1}'])
def test_references_that_are_lists_written_as_text_are_said(load: Load, text: str) -> None:
    rows = [{"text": "a", "answer": "Tom", "refs": text}]
    (warning,) = load_splits(load(rows, references="refs")).warnings
    assert "column 'refs': 1 of 1 cells are lists or objects written as text, first in" in warning


@pytest.mark.parametrize("text", ['{"name": "Tom"}', "[laughs] 'no'", "{x}", "it's [1] ['a']"])
def test_targets_that_are_json_or_look_alike_are_not(load: Load, text: str) -> None:
    assert load_splits(load([{"text": "a", "answer": text}])).warnings == []
