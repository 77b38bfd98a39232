"""Studies as commands: their entry point, their errors, and the files that they may replace."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.command import is_results


def test_every_study_runs_through_run_command() -> None:
    for path in Path(benchmarks.__path__[0]).rglob("*.py"):
        assert "typer.run" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("study", ["prompt_lookup", "overhead"])
def test_missing_model_fails_with_one_line(study: str, tmp_path: Path) -> None:
    process = run_study(f"benchmarks.studies.{study}", tmp_path / "none", tmp_path / "nothing")
    assert process.returncode == 2
    assert re.fullmatch(r"error: .*none.*\n", process.stderr)


def run_study(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "content",
    ["my diary", '{"environment": {"os": "Linux"}}', '{"version": 1, "tasks": {}}', '{"tasks": [1]}', "[" * 9000, "[]"],
)
def test_other_files_are_not_results(content: str) -> None:
    assert not is_results(content.encode())


def test_results_of_every_study_are_recognized() -> None:
    by_hand = "base_dropout.json"  # assembled by hand from several runs
    for path in (Path(benchmarks.__path__[0]) / "results").glob("*.json"):
        assert is_results(path.read_bytes()) == (path.name != by_hand), path.name


def test_study_refuses_to_replace_other_files(tmp_path: Path) -> None:
    diary = tmp_path / "diary.json"
    diary.write_text("my diary", encoding="utf-8")
    process = run_study("benchmarks.studies.sharing", tmp_path / "bundle", "--json", diary)
    assert process.returncode == 2
    expected = rf"error: {re.escape(str(diary))} already exists and was not written by a study; .* another --json\n"
    assert re.fullmatch(expected, process.stderr)
    assert diary.read_text(encoding="utf-8") == "my diary"


def test_study_replaces_its_own_results(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text('{"environment": {"lora-ft": "0.1.0"}}', encoding="utf-8")
    process = run_study("benchmarks.studies.sharing", tmp_path / "nothing", "--json", results)
    assert "nothing" in process.stderr  # the error is about the bundle, so the file was accepted


def test_scale_study_replaces_only_its_own_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Mine", encoding="utf-8")
    assert run_study("benchmarks.studies.scale", "--out", page).returncode == 2
    assert page.read_text(encoding="utf-8") == "# Mine"
    page.unlink()
    for _ in range(2):
        assert run_study("benchmarks.studies.scale", "--out", page).returncode == 0
