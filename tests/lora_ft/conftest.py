"""A finished run on the tiny base, trained once for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Do not write into it."""
    folder = tmp_path_factory.mktemp("run")
    task = write_task(folder, tiny_base, train={"metric_for_best_model": "loss"})
    return train(load_task(task), folder / "run")
