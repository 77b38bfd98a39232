"""Finished runs on the tiny base, trained once for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task
from tests.lora_ft.data.chats.test_rows import PROMPT, write_chat


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Do not write into it."""
    folder = tmp_path_factory.mktemp("run")
    task = write_task(folder, tiny_base, train={"metric_for_best_model": "loss"})
    return train(load_task(task), folder / "run")


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Return a run of a tiny chat with its own settings. Do not write into it."""
    root = tmp_path_factory.mktemp("chat")
    write_chat(root / "task-tiny" / "result.json", list(range(30)))
    task = write_task(
        root,
        tiny_base,
        prompt=PROMPT,
        codec="text",
        lengths={"source": 200, "target": 24},
        data={
            "train": "result.json",
            "validation": None,
            "test": None,
            "target": "response",
            "chat": {"context": 3, "characters": 90},
        },
        train={"max_steps": 1, "metric_for_best_model": "loss"},
        generate={"do_sample": True, "temperature": 1.5, "max_new_tokens": 12},
    )
    return train(load_task(task), root / "run")
