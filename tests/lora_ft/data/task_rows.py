"""Types and rows that tests of examples and splits share. The fixture `load` is in `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_ft.data.examples import Example
from lora_ft.tasks.schema import Task

MakeTask = Callable[..., Path]
Rows = list[dict[str, Any]]
Load = Callable[..., Task]


def numbered(count: int) -> Rows:
    """Return rows with different texts."""
    return [{"text": f"row {i}", "answer": f"a{i}"} for i in range(count)]


def prompts(examples: list[Example]) -> list[str]:
    """Return the prompts of examples."""
    return [example.prompt for example in examples]
