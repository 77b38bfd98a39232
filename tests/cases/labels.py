"""Labels: rare ones."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from export.errors import UsageError
from lora_ft.data import load_splits
from lora_ft.taskfile import load_task


def check_a_label_of_one_row_is_refused_wherever_it_stands(folder: Path, scratch: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rare.jsonl").read_text(encoding="utf-8").splitlines()]
    content = yaml.safe_load((folder / "t.yaml").read_text(encoding="utf-8"))
    content |= {"labels": "auto"}
    content["data"]["train"] = "rare.jsonl"
    (scratch / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for place in range(len(rows)):
        moved = [*rows[:place], rows[-1], *rows[place:-1]]
        (scratch / "rare.jsonl").write_text("\n".join(map(json.dumps, moved)), encoding="utf-8")
        try:
            load_splits(load_task(scratch / "task.yaml"))
        except UsageError as error:
            assert "the label 'rare' has a single row" in error.message, error.message
            assert "add rows of it" in error.remedy
        else:
            raise AssertionError(f"accepted at {place}")


def check_splits_are_stratified(folder: Path, scratch: Path) -> None:
    content = yaml.safe_load((folder / "t.yaml").read_text(encoding="utf-8"))
    content |= {"labels": "auto"}
    content["data"] |= {"train": "int.jsonl", "root": str(folder.resolve())}
    (scratch / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    splits = load_splits(load_task(scratch / "task.yaml"))
    for name, least in (("train", 6), ("validation", 1), ("test", 1)):
        targets = [example.target for example in splits[name]]
        counts = [targets.count(label) for label in ("0", "1", "2")]
        assert min(counts) >= least and max(counts) - min(counts) <= 1, (name, counts)
