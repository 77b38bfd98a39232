"""A folder for all inputs of a test, and the models whose copies are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task
from tests.export.oracle import make_bundle
from tests.tiny import save_tiny_t5


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written to again by every input."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to copy; do not write into it."""
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(save_tiny_t5(folder / "tiny"), folder / "bundle")
    _use_one_thread()
    return folder / "bundle"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """A finished run to copy; do not write into it."""
    folder = tmp_path_factory.mktemp("run")
    task = write_task(folder, tiny_base, train={"num_train_epochs": 1, "metric_for_best_model": "loss"})
    run = train(load_task(task), folder / "run")
    _use_one_thread()
    return run


def _use_one_thread() -> None:
    """Undo what a job set: on tiny matrices a second thread only waits, 10 ms a matrix on a busy machine."""
    torch.set_num_threads(1)
