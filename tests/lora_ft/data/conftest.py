"""A task with rows that a test passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from tests.lora_ft.data.task_rows import Load, MakeTask, Rows


@pytest.fixture
def load(make_task: MakeTask) -> Load:
    """Return a function that creates a task with training rows only; keyword arguments are keys of its section data."""

    def make(rows: Rows, **data: Any) -> Task:
        path = make_task(data={"train": "rows.jsonl", "validation": None, "test": None, **data})
        (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return load_task(path)

    return make
