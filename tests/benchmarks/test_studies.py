"""The index of the studies is complete, and studies do not depend on the command line."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.test_layers import imports_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
INDEX = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
STUDIES = sorted(path.stem for path in (BENCHMARKS / "studies").glob("*.py") if path.stem != "__init__")


def test_index_lists_exactly_the_studies() -> None:
    section = INDEX.partition("## Studies")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == STUDIES


def test_index_names_every_result_file() -> None:
    names = set(re.findall(r"`([\w-]+)`", INDEX))
    assert {path.stem for path in (BENCHMARKS / "results").glob("*.json")} <= names


@pytest.mark.parametrize("study", STUDIES)
def test_docstring_of_a_study_states_its_command(study: str) -> None:
    module = importlib.import_module(f"benchmarks.studies.{study}")
    assert module.__doc__ is not None and f"python -m benchmarks.studies.{study}" in module.__doc__


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_do_not_import_the_command_line(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.startswith("lora_ft.cli")]
