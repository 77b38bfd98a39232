"""Every measurement of the project as a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks


def test_no_study_has_another_entry() -> None:
    for path in Path(benchmarks.__path__[0]).glob("*.py"):
        if path.stem not in ("worker", "training_worker"):
            assert "typer.run" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("study", ["lookup", "overhead"])
def test_a_missing_model_is_one_line(study: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{study}", str(tmp_path / "none"), str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*none.*\n", done.stderr)
