"""Splits of a task: read, cut, limited, and loaded from the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import datasets
import pytest

from lora_ft.core.errors import UsageError
from lora_ft.core.hub import hub_trouble
from lora_ft.data.splits import load_splits, require, training_examples
from lora_ft.tasks.files import load_task
from tests.lora_ft.data.task_rows import Load, MakeTask, numbered, prompts


@pytest.fixture
def no_cached_trouble() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


def test_splits_with_sources_are_read_unchanged(make_task: MakeTask) -> None:
    splits = load_splits(load_task(make_task(rows=5)))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [5, 6, 6]
    assert all(prompt.startswith("say: v") for prompt in prompts(splits.validation))


def test_splits_that_are_not_requested_are_not_read(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"train": "missing.jsonl"}))
    splits = load_splits(task, ["test"])
    assert not splits.train and not splits.validation and len(splits.test) == 6


def test_file_without_rows_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.train: rows\.jsonl has no rows"):
        load_splits(load([]))


def test_limits_take_the_first_rows_of_each_split(make_task: MakeTask) -> None:
    everything = load_splits(load_task(make_task()))
    limited = load_splits(load_task(make_task(data={"limit": {"train": 3, "test": 2, "validation": 99}})))
    assert limited.train == everything.train[:3]
    assert limited.test == everything.test[:2]
    assert limited.validation == everything.validation


def test_cut_splits_are_disjoint_and_complete(load: Load) -> None:
    splits = load_splits(load(numbered(50), split={"validation": 0.1, "test": 0.2}))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [35, 5, 10]
    together = [*prompts(splits.train), *prompts(splits.validation), *prompts(splits.test)]
    assert sorted(together) == sorted(f"say: row {i}" for i in range(50))
    assert splits.overlap == 0


def test_cut_depends_on_the_seed_only(load: Load) -> None:
    def cut(seed: int) -> list[list[str]]:
        splits = load_splits(load(numbered(50), split={"validation": 0, "test": 0.3, "seed": seed}))
        return [prompts(splits.train), prompts(splits.test)]

    assert cut(1) == cut(1)
    assert sorted(cut(1)[1]) != sorted(cut(2)[1])
    assert cut(1)[1] != [f"say: row {i}" for i in range(15)]


def test_split_read_alone_equals_the_one_cut_with_others(load: Load) -> None:
    task = load(numbered(50), split={"validation": 0.1, "test": 0.2})
    whole = load_splits(task)
    assert load_splits(task, ["test"]).test == whole.test
    assert load_splits(task, ["validation"]).validation == whole.validation
    assert load_splits(task, ["train", "validation"]).train == whole.train


def test_only_missing_splits_are_cut(make_task: MakeTask) -> None:
    task = load_task(make_task(rows=40, data={"test": None, "split": {"validation": 0.5, "test": 0.25}}))
    splits = load_splits(task)
    uncut = load_splits(load_task(make_task(rows=40)))
    assert splits.validation == uncut.validation
    assert (len(splits.train), len(splits.test)) == (30, 10)


def test_cut_without_training_rows_is_refused(load: Load) -> None:
    with pytest.raises(UsageError, match=r"data\.split leaves no training rows of 4"):
        load_splits(load(numbered(4), split={"validation": 0.5, "test": 0.5}))


def test_limit_of_training_rows_applies_after_the_cut(load: Load) -> None:
    splits = load_splits(load(numbered(50), split={"validation": 0.2}, limit={"train": 10}))
    assert (len(splits.train), len(splits.validation), splits.overlap) == (10, 10, 0)


def test_overlap_counts_prompts_of_training_rows(make_task: MakeTask) -> None:
    path = make_task()
    lines = (path.parent / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (path.parent / "validation.jsonl").write_text("\n".join(lines[:3]), encoding="utf-8")
    with open(path.parent / "test.jsonl", "a", encoding="utf-8") as file:
        file.write(lines[5] + "\n")
    assert load_splits(load_task(path)).overlap == 4


def test_required_split_must_have_rows(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"test": None}))
    splits = load_splits(task)
    assert require(splits, "validation", task) == splits.validation
    with pytest.raises(UsageError, match="task 'tiny' has no test rows") as caught:
        require(splits, "test", task)
    assert "data.test" in caught.value.remedy and "data.split.test" in caught.value.remedy


HUB = {"hub": "someone/rows", "train": "train", "validation": "dev", "test": None}


def test_hub_data_set_is_refused_offline(make_task: MakeTask, no_cached_trouble: None) -> None:
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(make_task(data=HUB)))
    assert caught.value.message == "the data set someone/rows is on the Hub, but HF_HUB_OFFLINE is set"
    assert "a local file in data.train" in caught.value.remedy


def test_hub_data_set_is_read_by_the_names_of_its_splits(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        calls.append((name, config, split, revision))
        rows = [{"text": split, "answer": "a", "score": 3.8, "more": [{"each": [3.8, None]}]}]
        text, short = datasets.Value("string"), datasets.Value("float32")
        features = {"text": text, "answer": text, "score": short, "more": [{"each": datasets.Sequence(short)}]}
        return datasets.Dataset.from_list(rows, features=datasets.Features(features))

    monkeypatch.setattr("lora_ft.data.splits.require_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_splits(load_task(make_task(data=HUB | {"config": "en", "revision": "v1"})))
    assert calls == [("someone/rows", "en", "train", "v1"), ("someone/rows", "en", "dev", "v1")]
    assert prompts(splits.train) == ["say: train"] and prompts(splits.validation) == ["say: dev"]
    assert splits.train[0].row["score"] == 3.8
    assert splits.train[0].row["more"] == [{"each": [3.8, None]}]


def test_error_of_the_hub_is_reported(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ValueError("Unknown split 'train'.\nLong advice.")

    monkeypatch.setattr("lora_ft.data.splits.require_hub", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError) as caught:
        load_splits(load_task(make_task(data=HUB)))
    assert caught.value.message == "data.train: cannot load someone/rows (Unknown split 'train'.)"


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
