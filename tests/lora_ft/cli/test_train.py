"""`lora-ft train` of several tasks: files, folders and grids, progress, results and errors."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lora_ft.cli import group_screen
from lora_ft.cli import run as lora_ft
from lora_ft.multi_lora.dashboard import AdapterStatus
from lora_ft.reports.terminal import distinct
from lora_ft.runs.run import Run, is_run

MakeTask = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
SHORT = {"max_steps": 4, "metric_for_best_model": "loss", "learning_rate": 0.001}


def test_a_grid_is_trained_and_its_best_run_is_marked(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    task = make_task(train=SHORT, grid={"lora.r": [2, 4], "train.learning_rate": [0.001, 0.01]})
    out = tmp_path / "runs"
    assert lora_ft(["train", str(task), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    grid = json.loads((out / "grid.json").read_text())
    assert len(grid["runs"]) == 4 and all(is_run(out / entry["name"]) for entry in grid["runs"])
    assert grid["best"] == min(grid["runs"], key=lambda entry: entry["score"])["name"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "4 runs · best" in page and all(f">{entry['name']}<" in page for entry in grid["runs"])
    assert all((out / entry["name"] / "report.html").is_file() for entry in grid["runs"])
    assert "4 adapters on one base in 1 group" in printed.err
    assert printed.out.count("best") == 2  # a column, and one run
    assert f"4 runs in {out}" in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines()[:-1])
    assert lora_ft(["adapters", "list", str(out)]) == 0
    listed = capsys.readouterr().out
    assert listed.count(" *") == 1 and listed.count("loss") == 4


def test_a_folder_of_tasks_is_trained(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("one", "two"):
        path = make_task(name=name, train=SHORT)
        shutil.copytree(path.parent, folder, dirs_exist_ok=True)
        (folder / "task.yaml").rename(folder / f"{name}.yaml")
    assert lora_ft(["train", str(folder), "--out", str(tmp_path / "runs"), "--group-size", "1"]) == 0
    assert "2 adapters on one base in 2 groups" in capsys.readouterr().err
    assert [Run(tmp_path / "runs" / name).task.name for name in ("one", "two")] == ["one", "two"]
    assert not (tmp_path / "runs" / "grid.json").exists()


def test_single_task_is_trained(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    assert lora_ft(["train", str(make_task(train=SHORT)), "--out", str(tmp_path / "run")]) == 0
    assert is_run(tmp_path / "run") and "parameters trained" in capsys.readouterr().out


def test_failed_task_is_reported_with_exit_code_1(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    broken = {**SHORT, "learning_rate": 3e37, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    tasks = [str(make_task(name="sound", train=SHORT)), str(make_task(name="broken", train=broken))]
    assert lora_ft(["train", *tasks, "--out", str(tmp_path / "runs")]) == 1
    printed = capsys.readouterr().out
    assert "failed: broken: the loss of step" in printed and "1 runs in" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", "me/it"], "uploads a single run"),
        (["--resume"], "no unfinished groups"),
        (["--set", "lora.use_dora=true"], "lora.use_dora = True"),
        (["--gpus-per-group", "0.5"], "add --engine ray"),
        (["--engine", "ray", "--push-to-hub", "me/it"], "uploads a single run"),
    ],
)
def test_wrong_options_for_several_tasks_are_refused(
    make_task: MakeTask, tmp_path: Path, capsys: Capture, options: list[str], message: str
) -> None:
    tasks = [str(make_task(name=name, train=SHORT)) for name in ("one", "two")]
    assert lora_ft(["train", *tasks, "--out", str(tmp_path / "runs"), *options]) == 2
    assert message in capsys.readouterr().err


def test_empty_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert lora_ft(["train", str(tmp_path)]) == 2
    assert "contains no task files" in capsys.readouterr().err


ROWS = [
    AdapterStatus("summaries-of-long-dialogues-r-16-seed-2", 1200, 12000, 2.3456, "rouge1", 31.23, 4.56, 3700.0, ""),
    AdapterStatus("qa", 3, 40, None, "rouge1", None, None, None, ""),
    AdapterStatus("chat", 40, 40, 1.5, "loss", 1.2, None, None, "finished"),
]


def test_screen_has_a_row_for_each_adapter() -> None:
    screen = group_screen.GroupScreen()
    screen.console = screen._live.console = Console(file=io.StringIO(), force_terminal=True, width=80, height=8)
    screen.rows(ROWS)
    shown = Console(file=io.StringIO(), width=80)
    shown.print(group_screen.status_table(ROWS, 2))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "1,200/12,000" in text and "1:01:40" in text and "and 1 more" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_status_is_a_line_without_a_terminal() -> None:
    assert group_screen.status_line(ROWS[1], "qa") == "qa  3/40  loss –  rouge1 –  –/s  – left"
    assert group_screen.status_line(ROWS[2], "talk") == "talk  40/40  finished"
    assert len(group_screen.status_line(ROWS[0], ROWS[0].name[:20])) <= 80


def test_lines_are_printed_at_intervals(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    screen = group_screen.GroupScreen()
    screen.rows(ROWS)
    assert "qa" not in capsys.readouterr().err
    monkeypatch.setattr(group_screen, "LINE_EVERY", -1.0)
    screen.rows(ROWS)
    assert "qa  3/40" in capsys.readouterr().err


GRID = [f"summaries-of-long-dialogues-r-{rank}-learning_rate-{rate}" for rank in (8, 16) for rate in (0.001, 0.0003)]


@pytest.mark.parametrize(
    ("names", "width", "shown"),
    [
        (["qa", "chat"], 20, ["qa", "chat"]),
        (GRID[:2], 28, ["…learning_rate-0.001", "…learning_rate-0.0003"]),
        (GRID[::2], 20, ["…r-8…", "…r-16…"]),
        (GRID, 22, ["…8…0.001", "…8…0.0003", "…16…0.001", "…16…0.0003"]),
        (["qa", *GRID[:2]], 22, ["qa", "…learning_rate-0.001", "…learning_rate-0.0003"]),
        ([GRID[0]], 11, ["summa…0.001"]),
        ([f"{'a' * 20}{letter}{'z' * 20}" for letter in "bc"], 10, ["aaaaaaa…#1", "aaaaaaa…#2"]),
    ],
)
def test_long_names_are_shortened_to_where_they_differ(names: list[str], width: int, shown: list[str]) -> None:
    assert list(distinct(names, width).values()) == shown


@given(st.lists(st.from_regex(r"[ab]{1,9}(-[ab]{1,9}){0,6}", fullmatch=True), unique=True, max_size=30))
def test_shortened_names_stay_distinct(names: list[str]) -> None:
    shown = distinct(names, 12)
    assert list(shown) == names and len(set(shown.values())) == len(names)
    assert all(len(text) <= 12 for text in shown.values())


def test_screen_distinguishes_runs_of_a_grid() -> None:
    rows = [AdapterStatus(name, 3, 40, None, "rouge1", None, None, None, "") for name in GRID]
    shown = Console(file=io.StringIO(), width=80)
    shown.print(group_screen.status_table(rows, 10))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in text for part in ("…8…0.001 ", "…8…0.0003 ", "…16…0.001 ", "…16…0.0003 "))
