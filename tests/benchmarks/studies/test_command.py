"""Every measurement of the project as a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.studies.command import is_results


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


def run_study(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "content",
    ["my diary", '{"environment": {"os": "Linux"}}', '{"version": 1, "tasks": {}}', '{"tasks": [1]}', "[" * 9000, "[]"],
)
def test_a_file_of_others_is_no_result_of_a_study(content: str) -> None:
    assert not is_results(content.encode())


def test_results_of_every_study_are_recognized() -> None:
    by_hand = "base_dropout.json"  # it was put together from several runs
    for path in (Path(benchmarks.__path__[0]) / "results").glob("*.json"):
        assert is_results(path.read_bytes()) == (path.name != by_hand), path.name


def test_a_study_does_not_replace_a_file_of_others(tmp_path: Path) -> None:
    diary = tmp_path / "diary.json"
    diary.write_text("my diary", encoding="utf-8")
    done = run_study("benchmarks.studies.sharing", tmp_path / "bundle", "--json", diary)
    assert done.returncode == 2
    expected = rf"error: {re.escape(str(diary))} already exists and was not written by a study; .* another --json\n"
    assert re.fullmatch(expected, done.stderr)
    assert diary.read_text(encoding="utf-8") == "my diary"


def test_a_study_replaces_its_own_results(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text('{"environment": {"lora-ft": "0.1.0"}}', encoding="utf-8")
    done = run_study("benchmarks.studies.sharing", tmp_path / "nothing", "--json", results)
    assert "nothing" in done.stderr  # it got as far as its bundle


def test_the_page_of_scale_replaces_no_other_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Mine", encoding="utf-8")
    assert run_study("benchmarks.studies.scale", "--out", page).returncode == 2
    assert page.read_text(encoding="utf-8") == "# Mine"
    page.unlink()
    for _ in range(2):
        assert run_study("benchmarks.studies.scale", "--out", page).returncode == 0
