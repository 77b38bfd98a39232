"""`lora-ft init` and `recipes --copy`: task files that validate, guesses with their reasons, and clear refusals."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

import lora_ft as package
from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import UsageError
from lora_ft.data.guess import guess_task, references_of
from lora_ft.data.lengths import measure_lengths
from lora_ft.data.splits import load_splits
from lora_ft.init import copy_recipe, init
from lora_ft.tasks.files import load_task, recipes
from lora_ft.tasks.schema import SPLITS, Task

Rows = list[dict[str, Any]]
TEXT = "A long report about many things. " * 20
SHAPES: dict[str, tuple[dict[str, str], str, str, str]] = {
    "questions": (
        {"id": "{i}", "question": "Why {i}?", "answer": "Because {i}."},
        "question answering",
        "Please answer this question: {question}",
        "answer",
    ),
    "contexts": (
        {"context": "Tower {i} is high.", "question": "What is {i}?", "answer": "a tower {i}"},
        "question answering",
        "Answer the question from the context. Question: {question} Context: {context} Answer:",
        "answer",
    ),
    "documents": (
        {"document": TEXT + "{i}", "summary": "Thing {i}"},
        "summarization",
        "Summarize: {document}",
        "summary",
    ),
    "long-inputs": ({"input": TEXT + "{i}", "target": "Thing {i}", "topic": "x {i}"}, "summarization", "", "target"),
    "inputs-that-ask": ({"input": "Why {i}?", "target": "Because {i}."}, "question answering", "", "target"),
    "pairs": ({"input": "low {i}", "target": "high {i}"}, "text to text", "{input}", "target"),
    "two-unknown-columns": ({"left": "low {i}", "right": "high {i}"}, "text to text", "{left}", "right"),
}


def rows_like(shape: dict[str, str], count: int = 60) -> Rows:
    return [{name: text.replace("{i}", str(i)) for name, text in shape.items()} for i in range(count)]


@pytest.mark.parametrize("name", ["a\nb", "a\x7fb", "a\x85b", "a\u2028b", "\ufeffé 😀 'q\" #: %[a]*"])
def test_any_name_of_a_file_or_column_is_written_so_that_it_is_read(tmp_path: Path, name: str) -> None:
    column = name.replace(":", "")
    rows = write_rows(tmp_path / f"{name}.jsonl", rows_like({column: "low {i}", "right": "high {i}"}))
    task = load_task(init(tmp_path / f"{name}.yaml", data=rows, base=f"/{name}").file)
    assert task.prompt == f"{{{column}}}" and task.base == f"/{name}"
    assert len(load_splits(task).train) == 48


@pytest.mark.parametrize("name", ["2024", "no", "null", "1e3"])
def test_a_name_that_yaml_reads_as_another_type_is_quoted(tmp_path: Path, name: str) -> None:
    rows = write_rows(tmp_path / f"{name}.jsonl", rows_like({"left": "low {i}", "right": "high {i}"}))
    assert load_task(init(tmp_path / f"{name}.yaml", data=rows).file).name == name
    assert load_task(init(tmp_path / name / f"{name}.yaml", recipe="group-chat").file).name == name


def test_a_task_file_may_be_in_a_new_folder(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", rows_like({"left": "low {i}", "right": "high {i}"}))
    task = load_task(init(tmp_path / "new" / "task.yaml", data=rows).file)
    assert len(load_splits(task).train) == 48


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a\udcff.jsonl", rows_like(SHAPES["pairs"][0]))
    with pytest.raises(UsageError, match="is not UTF-8"):
        init(tmp_path / "task.yaml", data=rows)


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", "rows.txt.gz", "rows.ndjson"])
def test_lines_of_json_are_rows_under_any_name(tmp_path: Path, name: str) -> None:
    rows = [*rows_like(SHAPES["pairs"][0], 58), {"input": "low", "target": "high", "score": float("nan")}]
    path = write_rows(tmp_path / name, rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert load_task(init(tmp_path / "task.yaml", data=path).file).data.target == "target"


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHAPES)
def test_task_is_guessed_from_columns(name: str) -> None:
    shape, kind, prompt, target = SHAPES[name]
    guess = guess_task(rows_like(shape))
    assert (guess.kind, guess.target, guess.labels) == (kind, target, False)
    assert guess.prompt == prompt or not prompt


@pytest.mark.parametrize("name", SHAPES)
def test_written_task_reads_its_rows(name: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / f"{name}.jsonl", rows_like(SHAPES[name][0]))
    result = init(tmp_path / "task.yaml", data=data)
    assert result.kind == SHAPES[name][1] and result.reasons
    splits = load_splits(load_task(result.file))
    assert [len(splits[split]) for split in SPLITS] == [48, 6, 6]


@pytest.mark.parametrize("wrapped", [True, False])
def test_rows_with_the_keys_of_a_chat_are_rows(wrapped: bool, tmp_path: Path) -> None:
    rows = [
        {"id": i, "ts": 1_700_000_000.5 + i, "type": "fault", "text": f"Part {i} broke.", "summary": f"No part {i}."}
        for i in range(30)
    ]
    (tmp_path / "train.json").write_text(json.dumps({"messages": rows} if wrapped else rows))
    task = init(tmp_path / "t.yaml", data=tmp_path / "train.json")
    assert task.kind != "group chat" and load_task(task.file).data.target == "summary"


def test_few_distinct_targets_are_labels() -> None:
    rows = [{"text": f"film number {i}", "label": i % 3} for i in range(60)]
    guess = guess_task(rows)
    assert (guess.kind, guess.target, guess.labels) == ("classification", "label", True)
    assert "3 distinct values in 60 rows" in " ".join(guess.reasons)


@pytest.mark.parametrize(("count", "rate"), [(60, 2e-3), (1_500, 3e-3)])
def test_many_rows_with_labels_are_learned_at_a_larger_rate(tmp_path: Path, count: int, rate: float) -> None:
    shape = {"text": "Message {i}", "label": "one"}
    rows = [row | {"label": ("one", "two", "three")[i % 3]} for i, row in enumerate(rows_like(shape, count))]
    written = init(tmp_path / "labels.yaml", data=write_rows(tmp_path / "rows.jsonl", rows))
    assert load_task(written.file).train.learning_rate == rate


def test_optional_input_of_instructions_may_be_empty() -> None:
    rows = [{"instruction": f"Do {i}", "input": "" if i % 2 else "this", "output": f"done {i}"} for i in range(20)]
    guess = guess_task(rows)
    assert (guess.kind, guess.prompt, guess.target) == ("instructions", "{instruction} {input?}", "output")


def test_last_of_messages_is_the_target() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    guess = guess_task([{"messages": messages}] * 4)
    assert (guess.prompt, guess.target) == ("{messages[-2].content}", "messages[-1].content")


def test_nested_answers_are_references() -> None:
    rows = [{"question": f"Who {i}?", "answers": {"text": [f"A {i}", "B"]}} for i in range(20)]
    assert guess_task(rows).target == "answers.text[0]"
    assert references_of(rows) == "answers.text"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "alone"}], "one column of text \\(text\\)"),
        ([{"id": 1, "text": "alone"}], "one column of text \\(text\\)"),
        ([{"How are you?": "well", "score": "1"}], "the column 'How are you\\?' cannot be named in a prompt"),
        (
            [{"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]}] * 3,
            "the last message of `messages` is the user's in 3 of 3 rows",
        ),
        ([{"a": "x", "b": "y", "c": "z"}], "cannot tell which column the model writes .*add --target COLUMN"),
    ],
)
def test_ambiguous_rows_are_refused(rows: Rows, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guess_task(rows)


def test_target_of_nested_annotations_can_be_named() -> None:
    rows = [{"data": {"text": f"x {i}"}, "annotations": [{"result": [{"choices": ["ab"[i % 2]]}]}]} for i in range(20)]
    guess = guess_task(rows, target="annotations[0].result[0].choices[0]")
    assert guess.labels and guess.prompt == "Classify this text: {data.text} Label:"


def test_rows_to_answer_are_left_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [{"input": "low"}])
    task = init(tmp_path / "task.yaml", data=write_rows(tmp_path / "train.jsonl", rows_like(SHAPES["pairs"][0])))
    assert "test.jsonl has no text in target, so it is left out" in task.reasons
    assert [len(load_splits(load_task(task.file))[name]) for name in SPLITS] == [48, 6, 6]


def test_table_of_kakaotalk_is_a_chat(tmp_path: Path) -> None:
    lines = [f'2023-11-{day:02} 09:0{i}:00,"{name}","text {i}"' for day in range(1, 9) for i, name in enumerate("ABA")]
    (tmp_path / "chat.csv").write_text("\n".join(["Date,User,Message", *lines]), encoding="utf-8")
    assert init(tmp_path / "task.yaml", data=tmp_path / "chat.csv").kind == "group chat"


def test_target_can_be_named() -> None:
    rows = [{"a": f"x {i}", "b": f"yy {i}", "c": f"z {i}"} for i in range(20)]
    assert guess_task(rows, target="c").target == "c"
    with pytest.raises(UsageError, match="correct --target"):
        guess_task(rows, target="d")


def test_lengths_without_a_tokenizer_are_estimates() -> None:
    rows = [{"a": "word " * 70, "b": "x" * 35}] * 10
    lengths = measure_lengths(rows, "{a}", "b", None)
    assert (lengths.source, lengths.target, lengths.cuts_targets) == (128, 16, True)
    assert "estimated" in lengths.reason


def test_newlines_need_the_text_codec(tmp_path: Path) -> None:
    rows = [{"question": f"Why {i}?", "answer": f"Because\n{i}"} for i in range(40)]
    result = init(tmp_path / "task.yaml", data=write_rows(tmp_path / "rows.jsonl", rows))
    assert load_task(result.file).codec == "text"


def test_rows_with_empty_cells_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"question": f"Why {i}?", "answer": "" if i == 3 else f"Because {i}"} for i in range(40)]
    result = init(tmp_path / "task.yaml", data=write_rows(tmp_path / "rows.jsonl", rows))
    assert "skip_empty: true # 1 rows have an empty cell" in result.file.read_text(encoding="utf-8")


def test_files_of_a_folder_are_its_splits(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("dev", 5), ("test", 6)):
        write_rows(tmp_path / f"{name}.jsonl", rows_like(SHAPES["questions"][0], count))
    for data in (tmp_path, tmp_path / "train.jsonl"):
        result = init(tmp_path / "task.yaml", data=data, overwrite=True)
        splits = load_splits(load_task(result.file))
        assert [len(splits[split]) for split in SPLITS] == [40, 5, 6]
        assert "validation from dev.jsonl, test from test.jsonl" in result.reasons


def test_chat_export_becomes_a_group_chat(tmp_path: Path) -> None:
    lines = [f"[{1 + i // 4}/11/2023, 14:{i % 60:02}:00] {'Ana' if i % 2 else 'Ben'}: hello {i}" for i in range(80)]
    (tmp_path / "chat.txt").write_text("\n".join(lines), encoding="utf-8")
    result = init(tmp_path / "task.yaml", data=tmp_path / "chat.txt")
    task = load_task(result.file)
    assert result.kind == "group chat" and task.data.chat is not None and task.generate.do_sample
    assert all(load_splits(task)[split] for split in SPLITS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "no rows"),
        ("header.csv", "question,answer\n", "no rows"),
        ("empty.jsonl", "", "no rows"),
        ("prose.txt", "Once upon a time.\n", "no"),
        ("rows.xlsx", "PK", "export"),
    ],
)
def test_files_without_rows_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        init(tmp_path / "task.yaml", data=tmp_path / name)
    assert not (tmp_path / "task.yaml").exists()


def test_command_writes_a_file_once_and_prints_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "my rows.jsonl", rows_like(SHAPES["questions"][0]))
    assert lora_ft(["init", "--data", "my rows.jsonl"]) == 0
    assert "next: lora-ft validate my-rows.yaml" in capsys.readouterr().out
    assert lora_ft(["init", "--data", "my rows.jsonl"]) == 2
    assert "my-rows.yaml already exists; pass another FILE, or add --overwrite" in capsys.readouterr().err
    assert lora_ft(["init"]) == 2
    assert "add --data FILE or --recipe NAME" in capsys.readouterr().err


def require_portable(file: Path) -> None:
    """Assert that a task file names no path of the installation, and says how editors get the schema."""
    text = file.read_text(encoding="utf-8")
    assert str(Path(package.__file__).parent) not in text and "file:" not in text
    assert (
        "recipes --schema > task.schema.json" in text and "`# yaml-language-server: $schema=task.schema.json`" in text
    )
    assert not re.search(r"^# yaml-language-server:", text, re.MULTILINE)  # editors would look for a missing file


def test_a_written_file_does_not_name_the_installation(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows_like(SHAPES["questions"][0]))
    require_portable(init(tmp_path / "task.yaml", data=data).file)


def test_editors_get_the_schema_of_task_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert lora_ft(["recipes", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == {*Task.model_fields, "grid", "search"}
    assert lora_ft(["recipes", "--schema", "--copy", "qa"]) == 2
    assert "--schema and --copy are both set" in capsys.readouterr().err


def test_settings_of_a_recipe_are_used_with_other_rows(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows_like(SHAPES["questions"][0]))
    task = load_task(init(tmp_path / "mine.yaml", data=data, recipe="qa").file)
    recipe = load_task("qa")
    assert (task.name, task.base, task.train, task.evaluate) == ("mine", recipe.base, recipe.train, recipe.evaluate)
    assert task.data.hub is None and len(load_splits(task).train) == 48


def test_rows_with_newlines_have_a_codec_with_a_recipe_too(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows_like({"question": "why {i}\n?", "answer": "low\n{i}"}))
    assert load_task("qa").codec == "none"
    assert load_task(init(tmp_path / "mine.yaml", data=data, recipe="qa").file).codec == "text"


def test_schema_of_a_recipe_is_copied_for_other_rows(tmp_path: Path) -> None:
    shape = {"note": "pulse {i}", "resource": '{"resourceType": "Patient", "id": "i"}'}
    data = write_rows(tmp_path / "rows.jsonl", rows_like(shape) + rows_like(shape | {"resource": "{}"}))
    file = init(tmp_path / "new" / "mine.yaml", data=data, recipe="clinical-fhir", target="resource").file
    task, recipe = load_task(file), load_task("clinical-fhir")
    assert (task.codec, task.generate.json_schema) == ("json", recipe.generate.json_schema)


@pytest.mark.parametrize("name", recipes())
def test_recipe_is_copied_with_its_rows(name: str, tmp_path: Path) -> None:
    file = copy_recipe(name, tmp_path / "new" / "mine.yaml").file
    require_portable(file)
    task = load_task(file)
    assert task.name == "mine"
    if task.data.hub is None:
        assert task.data.root is not None and task.data.root.is_relative_to(tmp_path)
        assert len(load_splits(task).train) == len(load_splits(load_task(name)).train)


def test_copy_never_replaces_files(tmp_path: Path) -> None:
    copy_recipe("dialogue-summary", tmp_path / "a.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml already exists"):
        copy_recipe("dialogue-summary", tmp_path / "a.yaml")
    with pytest.raises(UsageError, match="dialogue-summary already exists; pass a FILE in another folder"):
        copy_recipe("dialogue-summary", tmp_path / "b.yaml")
    with pytest.raises(UsageError, match="recipe soup does not exist; choose one of"):
        copy_recipe("soup", tmp_path / "c.yaml")
