"""SQuAD's `answers`, an object of lists, as references."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from lora_ft.core.errors import UsageError
from lora_ft.data.splits import load_splits
from lora_ft.evaluate import evaluate
from lora_ft.tasks.files import load_task
from tests.tiny import save_tiny_t5


def check_text_inside_gives_the_scores_of_flat_rows(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    base = save_tiny_t5(scratch / "base")
    scores = []
    for name, references in (("t_flat", "answers"), ("t_squad", "answers.text")):
        content = yaml.safe_load((scratch / f"{name}.yaml").read_text(encoding="utf-8"))
        content["data"]["references"] = references
        (scratch / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        task = load_task(scratch / f"{name}.yaml")
        scores.append((load_splits(task).test, evaluate(str(base), task=task).scores))
    assert scores[0] == scores[1]
    assert [example.references for example in scores[1][0]] == [
        ("Tom", "Tom"),
        ("1932", "in 1932"),
        ("three", "3"),
        ("Oslo", "in Oslo"),
    ]


def check_the_object_itself_is_refused(folder: Path, scratch: Path) -> None:
    try:
        load_splits(load_task(folder / "t_squad.yaml"))
    except UsageError as error:
        assert "squad.jsonl:1: column 'answers' holds an object" in error.message, error.message
        assert "use answers.text" in error.remedy, error.remedy
    else:
        raise AssertionError("an object became a reference")
