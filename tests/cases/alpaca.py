"""Rows in Alpaca's form, most of which have an empty input."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_ft.data.splits import load_splits
from lora_ft.tasks.files import load_task
from lora_ft.validate import validate


def check_an_optional_input(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    optional = 'prompt="{instruction}\\n{input?}"'
    report = validate(str(scratch / "task.yaml"), [optional])
    assert not report.errors and [side.rows for side in report.lengths if "prompts" in side.name] == [40, 5, 5]


def check_what_is_left_out_is_counted(folder: Path, scratch: Path) -> None:
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    skip = ["data.skip_empty=true"]
    splits = load_splits(load_task(scratch / "task.yaml", skip))
    assert splits.left_out == {"train": 30} and len(splits.train) == 16
    assert any(
        "30 of 50 rows left out (skip_empty): column 'input' is empty" in warning
        for warning in validate(str(scratch / "task.yaml"), skip).warnings
    )
