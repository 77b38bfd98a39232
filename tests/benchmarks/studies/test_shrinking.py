"""A shrunk student is trained with its teacher, scored on the same rows, and timed in turns with it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.shrinking import measure, tables
from lora_ft.core.progress import Silent
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task


def test_students_are_compared_with_their_teacher(tiny_base: Path, tmp_path: Path) -> None:
    teacher = train(load_task(write_task(tmp_path, tiny_base, train={"max_steps": 2})), tmp_path / "teacher")
    figures = measure(teacher, [1], ["train.max_steps=3"], tmp_path / "out", Silent(), rounds=1)
    first, student = figures["models"]
    assert (first["steps"], student["steps"]) == (2, 3)
    assert first["difference"] is None and student["difference"] is not None
    assert student["megabytes"] < first["megabytes"]
    shown = tables(figures)
    assert "| all (the teacher) | " in shown and "\n| 1 | " in shown
