"""`lora-ft adapters`: list, show, compare and delete runs of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.runs.run import Run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tiny_run: Run, tmp_path: Path) -> Path:
    """Return a folder that contains two runs and an unrelated folder."""
    for name in ("first", "second"):
        shutil.copytree(tiny_run.folder, tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_list_names_every_adapter_of_a_folder(folder: Path, capsys: Capture) -> None:
    assert lora_ft(["adapters", "list", str(folder)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["adapter", "base", "rank", "MB", "validation", "trained"]
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert all(row.split()[2] == "8" and "loss" in row and len(row) <= 80 for row in rows)


def test_show_prints_training_and_scores(folder: Path, capsys: Capture) -> None:
    assert lora_ft(["evaluate", str(folder / "first"), "--limit", "3"]) == 0
    capsys.readouterr()
    assert lora_ft(["adapters", "show", str(folder / "first")]) == 0
    shown = capsys.readouterr().out
    assert "q, v" in shown and "validation loss" in shown and "test rows" in shown and "rouge1" in shown


def test_compare_reads_all_runs_of_a_folder(folder: Path, capsys: Capture) -> None:
    for name in ("first", "second"):
        assert lora_ft(["evaluate", str(folder / name), "--limit", "3"]) == 0
    capsys.readouterr()
    assert lora_ft(["adapters", "compare", str(folder), "--rows", "0"]) == 0
    assert "3 test rows; differences from" in capsys.readouterr().out


def test_rm_deletes_runs_only_and_asks_first(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lora_ft(["adapters", "rm", str(folder / "notes"), "--yes"]) == 2
    assert "not a run" in capsys.readouterr().err
    assert lora_ft(["adapters", "rm", str(folder / "first")]) == 2
    assert "pass --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for refusal in ("n", EOFError):  # Ctrl-D
        monkeypatch.setattr("builtins.input", Mock(side_effect=[refusal]))
        assert lora_ft(["adapters", "rm", str(folder / "first")]) == 1
    assert (folder / "first").is_dir()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert lora_ft(["adapters", "rm", str(folder / "first")]) == 0
    assert lora_ft(["adapters", "rm", str(folder / "second"), "--yes"]) == 0
    assert [path.name for path in folder.iterdir()] == ["notes"]
    assert lora_ft(["adapters", "list", str(folder)]) == 2
    assert "contains no runs with adapters" in capsys.readouterr().err
