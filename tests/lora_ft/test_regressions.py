"""Regression tests, one for each bug."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.readers import read_rows
from lora_ft.data.splits import load_splits
from lora_ft.models.bases import find_base, load_tokenizer
from lora_ft.tasks.files import InvalidTaskError, load_task, save_task
from lora_ft.validate import validate

MakeTask = Callable[..., Path]
CUT: dict[str, Any] = {"validation": None, "test": None, "split": {"validation": 0.25, "test": 0.25}}


def test_train_limit_cuts_the_train_split_only(make_task: MakeTask) -> None:
    task = load_task(make_task(rows=40, data=CUT))
    assert load_splits(task, ["train"]).train == load_splits(task).train


def test_validate_of_a_cut_task_reports_no_overlap(make_task: MakeTask) -> None:
    rows = [{"text": f"row {i}", "answer": "a"} for i in range(40)]
    path = make_task(data=CUT)
    (path.parent / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    validation = validate(str(path))
    assert validation.warnings == [] and validation.lengths[0].rows == 20


def test_missing_train_file_is_one_fault(make_task: MakeTask) -> None:
    assert [f.key for f in validate(str(make_task(data=CUT | {"train": "gone.jsonl"}))).errors] == ["data.train"]


def test_unquoted_csv_line_separators(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([["text", "answer"], ["a\u2028b\x85c\x0bd\x0ce", "x"]])
    assert [r for _, r in read_rows(tmp_path, "a.csv", "k")] == [{"text": "a\u2028b\x85c\x0bd\x0ce", "answer": "x"}]


def test_damaged_csv_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,answer\na,b\nc,"d')
    with pytest.raises(LoraFtError, match=r"a\.csv:3"):
        read_rows(tmp_path, "a.csv", "k")


def test_csv_big_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "a " * 80_000 + "\n")
    assert len(read_rows(tmp_path, "a.csv", "k")) == 1


def test_object_remedy_braces(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]")
    with pytest.raises(LoraFtError) as c:
        read_rows(tmp_path, "a.jsonl", "k")
    assert "{{" not in c.value.remedy


def test_glob_in_bracketed_root(tmp_path: Path) -> None:
    (tmp_path / "d[1]").mkdir()
    (tmp_path / "d[1]" / "a.jsonl").write_text("{}")
    assert len(read_rows(tmp_path / "d[1]", "*.jsonl", "k")) == 1


def test_compile_off_unquoted(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["train.compile=off"]).train.compile == "off"


@pytest.mark.parametrize("o", ["data.train=5", "data.train=[5]", "data.root=5"])
def test_path_override_of_wrong_type(make_task: MakeTask, o: Any) -> None:
    with pytest.raises(UsageError):
        load_task(make_task(), [o])


@pytest.mark.parametrize("o", ["data.root=~/x", "data.train=~/x.jsonl"])
def test_home_in_override(make_task: MakeTask, o: Any) -> None:
    d = load_task(make_task(), [o]).data
    assert "~" not in str(d.root) and not (isinstance(d.train, str) and d.train.count("/~"))


def test_home_in_root(make_task: MakeTask) -> None:
    assert "~" not in str(load_task(make_task(data={"root": "~/x"})).data.root)


def test_override_order_of_hub(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["data.train=dev", "data.hub=a/b"]).data.train == "dev"


def test_unknown_preset_is_one_fault(make_task: MakeTask) -> None:
    with pytest.raises(InvalidTaskError) as c:
        load_task(make_task(lora={"preset": "huge"}))
    assert [f.key for f in c.value.errors] == ["lora.preset"]


def test_all_rows_dropped(make_task: MakeTask) -> None:
    validate(str(make_task(lengths={"target": 2, "long_targets": "drop"})))


def test_lone_surrogate(make_task: MakeTask) -> None:
    path = make_task()
    (path.parent / "train.jsonl").write_text('{"text": "a\\ud83d", "answer": "b"}')
    assert validate(str(path)).errors


def test_damaged_config(make_task: MakeTask, tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "b")
    (tmp_path / "b/config.json").write_text("{")
    with pytest.raises(LoraFtError):
        find_base(str(tmp_path / "b"))


def test_no_tokenizer_at_all(tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "b")
    for n in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "b" / n).unlink()
    with pytest.raises(LoraFtError):
        load_tokenizer(tmp_path / "b")


def test_hub_error_without_message(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("lora_ft.data.splits.require_hub", lambda *_: None)

    def boom(*a, **k):
        raise TimeoutError()

    monkeypatch.setattr(datasets, "load_dataset", boom)
    with pytest.raises(UsageError):
        load_splits(load_task(make_task(data={"hub": "a/b"})))


def test_partly_unknown_target_modules(make_task: MakeTask) -> None:
    assert validate(str(make_task(lora={"target_modules": "q,vv"}))).errors


def test_list_target(make_task: MakeTask) -> None:
    path = make_task()
    (path.parent / "train.jsonl").write_text('{"text": "a", "answer": ["b", "c"]}')
    with pytest.raises(LoraFtError):
        load_splits(load_task(path))


def test_limit_after_skip(make_task: MakeTask) -> None:
    path = make_task(data={"skip_empty": True, "limit": {"train": 1}})
    (path.parent / "train.jsonl").write_text('{"text": "", "answer": "b"}\n{"text": "a", "answer": "b"}')
    assert len(load_splits(load_task(path)).train) == 1


def test_offline_folder_beside_the_task(make_task: MakeTask) -> None:
    path = make_task()
    (path.parent / "offline").mkdir()
    assert load_task(path, ["base=offline"]).base == "offline"


def test_make_task_replaces_the_base(make_task: MakeTask) -> None:
    make_task(base="x/y")


def test_infinite_epochs(make_task: MakeTask) -> None:
    with pytest.raises(InvalidTaskError):
        load_task(make_task(), ["train.num_train_epochs=.inf"])


def test_truncated_weights(tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    from lora_ft.models.bases import load_model

    shutil.copytree(tiny_base, tmp_path / "b")
    p = tmp_path / "b/model.safetensors"
    p.write_bytes(p.read_bytes()[:999])
    with pytest.raises(LoraFtError):
        load_model(tmp_path / "b")


def test_best_of_a_moved_run(tmp_path: Path) -> None:
    from lora_ft.training.resume_points import seal

    for i in (1, 2, 3):
        (tmp_path / f"checkpoint-{i}").mkdir()
    seal(tmp_path, 3, keep=1, best=str(tmp_path / "old" / "checkpoint-1"))


def test_training_excludes_the_test_rows(make_task: MakeTask) -> None:
    """train() reads ("train", "validation"); only `test` is to be cut from the rows."""
    task = load_task(make_task(rows=40, data={"test": None, "split": {"test": 0.25}}))
    trained = load_splits(task, ("train", "validation")).train
    assert len(trained) == 30


def test_rare_line_break_in_a_task_survives_saving(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(prompt="say\x85 {text}\u2028"))
    save_task(task, tmp_path / "saved.yaml")
    assert load_task(tmp_path / "saved.yaml") == task
