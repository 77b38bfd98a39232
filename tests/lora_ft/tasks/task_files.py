"""Edits of task files, and the errors that loading them raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_ft.tasks.files import ErrorDetails, InvalidTaskError, load_task

MakeTask = Callable[..., Path]


def errors_of(path: Path, *overrides: str) -> dict[str, ErrorDetails]:
    """Load an invalid task, and return its errors by key."""
    with pytest.raises(InvalidTaskError) as caught:
        load_task(path, overrides)
    return {error.key: error for error in caught.value.errors}


def without(path: Path, key: str) -> Path:
    """Remove a key from a task file, and return its path."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def with_base(path: Path, base: str) -> Path:
    """Set the base of a task file, and return its path."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | {"base": base}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
