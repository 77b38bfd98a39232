"""validate: all that is wrong with a task, its data and its base at once, and what training would do, unwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.batching import encode
from lora_ft.data.splits import load_splits
from lora_ft.models.bases import load_tokenizer
from lora_ft.tasks.files import TaskFaults, load_task
from lora_ft.training.plan import make_plan
from lora_ft.validate import Validation, validate
from tests.tiny import CONFIG

MakeTask = Callable[..., Path]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def validated(path: Path, *overrides: str) -> Validation:
    return validate(str(path), overrides)


def test_a_sound_task_has_lengths_and_the_plan_of_its_training(make_task: MakeTask, tiny_base: Path) -> None:
    path = make_task()
    found = validated(path)
    task = load_task(path)
    rows = encode(load_splits(task).train, load_tokenizer(tiny_base), task.lengths, "train")
    assert found.task == "tiny" and found.faults == [] and found.warnings == []
    assert found.plan == make_plan(task, CONFIG, rows)
    assert [(side.what, side.rows) for side in found.lengths] == [
        ("train prompts", 24),
        ("train targets", 24),
        ("validation prompts", 6),
        ("validation targets", 6),
        ("test prompts", 6),
        ("test targets", 6),
    ]


def test_faults_of_the_data_and_the_base_are_found_at_once(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(data={"test": "gone.jsonl"})
    (path.parent / "train.jsonl").write_text('{"text": "a"', encoding="utf-8")
    write_rows(path.parent / "validation.jsonl", [{"text": "a", "answer": ""}])
    found = validated(path, f"base={tmp_path}")
    faults = {fault.key: fault for fault in found.faults}
    assert list(faults) == ["base", "data.train", "data.validation", "data.test"]
    assert faults["base"].value == str(tmp_path) and "has no config.json" in faults["base"].problem
    assert "train.jsonl:1 is not JSON" in faults["data.train"].problem
    assert "column 'answer' is empty" in faults["data.validation"].problem
    assert faults["data.test"].value == "gone.jsonl" and faults["data.test"].problem.startswith("no file ")
    assert found.plan is None and found.lengths == []


def test_faults_of_the_schema_are_raised_before_the_data_is_read(make_task: MakeTask) -> None:
    with pytest.raises(TaskFaults) as caught:
        validated(make_task(train={"seed": "x"}, data={"train": "gone.jsonl"}), "lengths.source=1")
    assert {fault.key for fault in caught.value.faults} == {"train.seed", "lengths.source"}


def test_a_damaged_file_is_one_fault_also_where_other_splits_are_cut_off_it(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None, "split": {"validation": 0.2, "test": 0.2}})
    (path.parent / "train.jsonl").write_text("{", encoding="utf-8")
    assert [fault.key for fault in validated(path).faults] == ["data.train"]


def test_a_task_without_training_rows_is_a_fault(make_task: MakeTask) -> None:
    found = validated(make_task(data={"train": None}))
    assert [fault.key for fault in found.faults] == ["data.train"] and found.plan is None


def test_targets_that_are_too_long_are_a_fault_with_the_lengths_beside_it(make_task: MakeTask) -> None:
    found = validated(make_task(lengths={"target": 6}))
    assert {fault.key for fault in found.faults} == {"lengths.target"}
    assert [fault.value for fault in found.faults] == [6] * len(found.faults)
    assert "train targets are longer than lengths.target = 6" in found.faults[0].problem
    assert "validation targets are longer" in found.faults[1].problem
    assert found.plan is None and len(found.lengths) == 6
    assert validated(make_task(lengths={"target": 6, "long_targets": "cut"})).faults == []


def test_layers_that_the_base_lacks_are_a_fault(make_task: MakeTask) -> None:
    found = validated(make_task(lora={"target_modules": "query"}))
    assert [fault.value for fault in found.faults] == [["query"]]
    assert "no linear layer 'query'" in found.faults[0].problem


def test_lengths_are_percentiles_of_tokens_and_the_share_that_is_cut(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None})
    # Letter by letter: n letters are n tokens, "say: " is 6 with the word mark, and </s> closes.
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


def test_missing_splits_are_warned_of(make_task: MakeTask) -> None:
    warnings = validated(make_task(data={"validation": None, "test": None})).warnings
    assert len(warnings) == 2
    assert has(warnings, "no validation rows", "data.split") and has(warnings, "no test rows", "--split validation")


def test_overlap_is_warned_of(make_task: MakeTask) -> None:
    assert has(validated(make_task(data={"test": "train.jsonl"})).warnings, "24 test prompts are training prompts too")


def test_rows_that_are_nearly_training_rows_are_warned_of(make_task: MakeTask) -> None:
    path = make_task()
    words = " ".join(f"word{i}" for i in range(40))
    write_rows(path.parent / "train.jsonl", [{"text": words, "answer": "a"}, {"text": "other", "answer": "b"}])
    write_rows(path.parent / "test.jsonl", [{"text": f"{words} more", "answer": "a"}])
    assert has(validated(path).warnings, "1 test rows are nearly training rows, such as row 1 and training row 1")


def test_texts_that_t5_cannot_write_are_warned_of(make_task: MakeTask) -> None:
    path = make_task()
    write_rows(path.parent / "validation.jsonl", [{"text": "a", "answer": "a\nb"}, {"text": "c漢", "answer": "d"}])
    warnings = validated(path).warnings
    assert has(warnings, "validation targets: 50% have newlines")
    assert has(warnings, "validation prompts:", "<unk>")
    assert not has(warnings, "train")


def test_prompts_that_are_cut_are_warned_of_from_five_percent(make_task: MakeTask) -> None:
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


def test_progress_is_told_what_happens(make_task: MakeTask) -> None:
    class Told:
        stages: list[str] = []  # noqa: RUF012

        def stage(self, name: str, total: int = 0, done: int = 0) -> None:
            self.stages.append(name)

        def advance(self, done: int, figures: str = "") -> None: ...

        def note(self, text: str) -> None: ...

    told = Told()
    validate(str(make_task()), progress=told)
    assert told.stages == ["finding the base", "reading the rows"]


def test_a_codec_is_recommended_where_it_would_help_and_no_more_once_it_is_set(make_task: MakeTask) -> None:
    path = make_task(codec="none")
    write_rows(path.parent / "train.jsonl", [{"text": "a", "answer": "{a}\nb"}, {"text": "漢", "answer": "c"}])
    warnings = validated(path).warnings
    assert has(warnings, "train targets: 50% have newlines, which T5 cannot write; set codec: text")
    assert has(warnings, "train targets:", "3 characters that T5 lacks, most often", "{", "; set codec: text")
    assert has(warnings, "train prompts:", "1 characters that T5 lacks, most often 漢")
    assert not has(warnings, "train prompts:", "set codec")
    assert not has(validated(path, "codec=text").warnings, "newlines")
    assert not has(validated(path, "codec=text").warnings, "set codec")


def test_targets_that_the_schema_refuses_are_warned_of(make_task: MakeTask) -> None:
    path = make_task(data={"validation": None, "test": None}, codec="json", evaluate={"json_schema": "schema.json"})
    write_rows(path.parent / "train.jsonl", [{"text": "a", "answer": {"b": 1}}, {"text": "b", "answer": [1]}])
    (path.parent / "schema.json").write_text('{"type": "object"}', encoding="utf-8")
    assert has(validated(path).warnings, "train targets: 1 are not valid by", "schema.json, first row 1")
    (path.parent / "schema.json").unlink()
    assert [fault.key for fault in validated(path).faults] == ["evaluate.json_schema"]
