"""validate reports all errors of a task, its data and its base, and the training plan, without writing anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.batching import encode
from lora_ft.data.splits import load_splits
from lora_ft.models.bases import load_tokenizer
from lora_ft.tasks.files import InvalidTaskError, load_task
from lora_ft.training.plan import make_plan
from lora_ft.validate import Validation, validate
from tests.tiny import CONFIG, JSON_MARKS, save_tiny_t5, tiny_tokenizer

MakeTask = Callable[..., Path]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def validated(path: Path, *overrides: str) -> Validation:
    return validate(str(path), overrides)


def test_a_valid_task_has_lengths_and_a_plan(make_task: MakeTask, tiny_base: Path) -> None:
    path = make_task()
    result = validated(path)
    task = load_task(path)
    rows = encode(load_splits(task).train, load_tokenizer(tiny_base), task.lengths, "train")
    assert result.task == "tiny" and result.errors == [] and result.warnings == []
    assert result.plan == make_plan(task, CONFIG, rows)
    assert [(side.name, side.rows) for side in result.lengths] == [
        ("train prompts", 24),
        ("train targets", 24),
        ("validation prompts", 6),
        ("validation targets", 6),
        ("test prompts", 6),
        ("test targets", 6),
    ]


def test_errors_of_data_and_base_are_reported_together(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(data={"test": "gone.jsonl"})
    (path.parent / "train.jsonl").write_text('{"text": "a"', encoding="utf-8")
    write_rows(path.parent / "validation.jsonl", [{"text": "a", "answer": ""}])
    result = validated(path, f"base={tmp_path}")
    errors = {error.key: error for error in result.errors}
    assert list(errors) == ["base", "data.train", "data.validation", "data.test"]
    assert errors["base"].value == str(tmp_path) and "has no config.json" in errors["base"].problem
    assert "train.jsonl:1 is not JSON" in errors["data.train"].problem
    assert "column 'answer' is empty" in errors["data.validation"].problem
    assert errors["data.test"].value == "gone.jsonl" and errors["data.test"].problem.startswith("no file ")
    assert result.plan is None and result.lengths == []


def test_invalid_keys_are_raised_before_the_data_is_read(make_task: MakeTask) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        validated(make_task(train={"seed": "x"}, data={"train": "gone.jsonl"}), "lengths.source=1")
    assert {error.key for error in caught.value.errors} == {"train.seed", "lengths.source"}


def test_a_damaged_file_with_several_splits_is_one_error(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None, "split": {"validation": 0.2, "test": 0.2}})
    (path.parent / "train.jsonl").write_text("{", encoding="utf-8")
    assert [error.key for error in validated(path).errors] == ["data.train"]


def test_a_fault_of_rows_in_several_splits_is_one_error(make_task: MakeTask) -> None:
    path = make_task(
        data={"validation": None, "test": None, "split": {"validation": 0.2, "test": 0.2}, "target": "Answer"}
    )
    (error,) = validated(path).errors
    assert error.key == "data.train" and "has no column 'Answer'" in error.problem
    errors = validated(make_task(data={"target": "Answer"}, name="files")).errors
    assert [error.key for error in errors] == ["data.train", "data.validation", "data.test"]


def test_a_task_without_training_rows_is_an_error(make_task: MakeTask) -> None:
    result = validated(make_task(data={"train": None}))
    assert [error.key for error in result.errors] == ["data.train"] and result.plan is None


def test_long_targets_are_an_error_with_their_lengths(make_task: MakeTask) -> None:
    result = validated(make_task(lengths={"target": 6}))
    assert {error.key for error in result.errors} == {"lengths.target"}
    assert [error.value for error in result.errors] == [6] * len(result.errors)
    assert "train targets are longer than lengths.target = 6" in result.errors[0].problem
    assert "validation targets are longer" in result.errors[1].problem
    assert result.plan is None and len(result.lengths) == 6
    assert validated(make_task(lengths={"target": 6, "long_targets": "cut"})).errors == []


def test_layers_missing_from_the_base_are_an_error(make_task: MakeTask) -> None:
    result = validated(make_task(lora={"target_modules": "query"}))
    assert [error.value for error in result.errors] == [["query"]]
    assert "no linear layer 'query'" in result.errors[0].problem


def test_lengths_are_percentiles_and_the_share_above_the_limit(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None})
    # One token per letter: "say: " has 6 with the word mark, and </s> is added.
    write_rows(path.parent / "train.jsonl", [{"text": "a" * n, "answer": "b" * 5} for n in range(1, 102)])
    prompts, targets = validated(path).lengths
    assert prompts.percentiles == (7 + 51, 7 + 91, 7 + 96, 7 + 101)
    assert prompts.limit == 48 and prompts.cut_share == pytest.approx(60 / 101)
    assert targets.percentiles == (7, 7, 7, 7) and (targets.limit, targets.cut_share) == (24, 0)
    assert prompts.unknown_share == targets.unknown_share == prompts.newline_share == 0


def test_unknown_characters_and_newlines_are_counted(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None})
    write_rows(path.parent / "train.jsonl", [{"text": "aa", "answer": "ab漢"}, {"text": "bb", "answer": "a\nb"}])
    prompts, targets = validated(path).lengths
    assert (prompts.unknown_share, prompts.newline_share) == (0, 0)
    assert targets.unknown_share == pytest.approx(2 / 10) and targets.newline_share == 0.5


def has(warnings: list[str], *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in warnings)


def test_missing_splits_are_reported(make_task: MakeTask) -> None:
    warnings = validated(make_task(data={"validation": None, "test": None})).warnings
    assert len(warnings) == 2
    assert has(warnings, "no validation rows", "data.split") and has(warnings, "no test rows", "data.split.test")


def test_overlap_with_training_rows_is_reported(make_task: MakeTask) -> None:
    assert has(validated(make_task(data={"test": "train.jsonl"})).warnings, "24 test prompts are also training prompts")


def test_near_duplicates_of_training_rows_are_reported(make_task: MakeTask) -> None:
    path = make_task()
    words = " ".join(f"word{i}" for i in range(40))
    write_rows(path.parent / "train.jsonl", [{"text": words, "answer": "a"}, {"text": "other", "answer": "b"}])
    write_rows(path.parent / "test.jsonl", [{"text": f"{words} more", "answer": "a"}])
    assert has(validated(path).warnings, "1 test rows nearly equal training rows, such as row 1 and training row 1")


def test_texts_that_t5_cannot_write_are_reported(make_task: MakeTask) -> None:
    path = make_task()
    write_rows(path.parent / "validation.jsonl", [{"text": "a", "answer": "a\nb"}, {"text": "c漢", "answer": "d"}])
    warnings = validated(path).warnings
    assert has(warnings, "validation targets: 50% have newlines")
    assert has(warnings, "validation prompts:", "<unk>")
    assert not has(warnings, "train")


def test_cut_prompts_are_reported_above_five_percent(make_task: MakeTask) -> None:
    path = make_task()
    rows = [{"text": "a" * 9, "answer": "b"}] * 95
    long = {"text": "a" * 99, "answer": "b"}
    write_rows(path.parent / "train.jsonl", [*rows, *[long] * 5])
    assert validated(path).warnings == []
    write_rows(path.parent / "train.jsonl", [*rows, *[long] * 10])
    assert validated(path).warnings == ["train prompts: 10% are cut at lengths.source = 48"]


def test_nothing_is_written(make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_task()
    cache = tmp_path / "cache"
    monkeypatch.setenv("LORA_FT_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def files() -> dict[Path, tuple[int, int]]:
        return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in tmp_path.rglob("*")}

    before = files()
    assert validated(path).plan is not None
    assert files() == before and not cache.exists()


def test_progress_receives_the_stages(make_task: MakeTask) -> None:
    class Stages:
        stages: list[str] = []  # noqa: RUF012

        def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
            self.stages.append(name)

        def advance(self, completed: int, figures: str = "") -> None: ...

        def note(self, text: str) -> None: ...

    progress = Stages()
    validate(str(make_task()), progress=progress)
    assert progress.stages == ["finding the base", "reading the rows"]


def test_a_codec_is_recommended_only_if_it_helps(make_task: MakeTask) -> None:
    path = make_task(codec="none")
    write_rows(path.parent / "train.jsonl", [{"text": "a", "answer": "{a}\nb"}, {"text": "漢", "answer": "c"}])
    warnings = validated(path).warnings
    assert has(warnings, "train targets: 50% have newlines, which T5 cannot write; set codec: text")
    assert has(warnings, "train targets:", "3 characters that T5 lacks, most often", "{", "; set codec: text")
    assert has(warnings, "train prompts:", "1 characters that T5 lacks, most often 漢")
    assert not has(warnings, "train prompts:", "set codec")
    assert not has(validated(path, "codec=text").warnings, "newlines")
    assert not has(validated(path, "codec=text").warnings, "set codec")


def test_targets_that_the_schema_refuses_are_reported(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None}, codec="json", evaluate={"json_schema": "schema.json"})
    write_rows(path.parent / "train.jsonl", [{"text": "a", "answer": {"b": 1}}, {"text": "b", "answer": [1]}])
    (path.parent / "schema.json").write_text('{"type": "object"}', encoding="utf-8")
    assert has(validated(path).warnings, "train targets: 1 are invalid under", "schema.json, such as '[1]'")
    (path.parent / "schema.json").unlink()
    assert [error.key for error in validated(path).errors] == ["evaluate.json_schema"]


def test_targets_that_cannot_be_generated_are_reported(make_task: MakeTask, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    base = save_tiny_t5(tmp_path / "base")
    sections: dict[str, Any] = {"codec": "json", "generate": {"json_schema": schema}, "base": str(base)}
    path = make_task(data={"validation": None, "test": None}, **sections)
    write_rows(path.parent / "train.jsonl", [{"text": "x", "answer": {"a": 1, "b": 2}}, {"text": "y", "answer": [1]}])
    (error,) = validated(path).errors
    assert error.key == "generate" and "needs the character" in error.problem
    tiny_tokenizer(JSON_MARKS).save(str(base / "tokenizer.json"))
    assert has(validated(path).warnings, "1 of 2 training targets cannot be generated", "such as '[1]'")
    assert not has(validated(path, "generate.constrained=false").warnings, "cannot be generated")
