"""Inputs that once failed in users' hands, each with the right result.

The inputs lie outside the project, in one folder per kind. Each module is named after its folder, and its functions
`check_*` take (folder of the inputs, empty folder to write to) and raise AssertionError if the result is wrong.
`python -m tests.cases FOLDER` runs them all; `tests/test_cases.py` runs them with the other tests.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

DEFAULT_FOLDER = Path(os.environ.get("LORA_FT_CASES", Path(__file__).parents[3] / "shared" / "cases"))


class Case(NamedTuple):
    """One check: the name of its folder, its own name, and the function."""

    folder: str
    name: str
    check: Callable[[Path, Path], None]

    def __str__(self) -> str:
        return f"{self.folder}: {self.name}"


def all_cases() -> Iterator[Case]:
    """Yield every check of every module in this package."""
    for module in pkgutil.iter_modules(__path__):
        if module.name == "__main__":
            continue
        checks = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for name, check in checks.items():
            if name.startswith("check_"):
                yield Case(module.name, name.removeprefix("check_"), check)
