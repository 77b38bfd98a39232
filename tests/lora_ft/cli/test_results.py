"""Results as JSON, and commands that are quiet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.cli.options import SplitChoice
from lora_ft.cli.results import plain
from lora_ft.runs.run import Run

Capture = pytest.CaptureFixture[str]


@dataclass
class Result:
    folder: Path
    scores: dict[str, Any]
    token: str = field(default="secret", repr=False)


def test_results_become_plain_values() -> None:
    result = Result(Path("runs") / "one", {"rouge1": np.float32(0.5), "rows": (1, 2), "loss": float("nan")})
    expected = {"folder": str(Path("runs/one")), "scores": {"rouge1": 0.5, "rows": [1, 2], "loss": None}}
    assert plain(result) == expected
    assert plain([SplitChoice.test, np.arange(2), None, True]) == ["test", [0, 1], None, True]


def printed_json(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert lora_ft([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_errors_of_a_task_are_printed_as_json(make_task: Callable[..., Path], capsys: Capture) -> None:
    (error,) = printed_json(capsys, "validate", str(make_task(lora={"r": 0})), code=2)["errors"]
    assert error["key"] == "lora.r" and error["value"] == 0


def test_recipes_and_memory_are_printed_as_json(capsys: Capture) -> None:
    assert printed_json(capsys, "recipes")["qa"].endswith("qa.yaml")
    assert {size["name"] for size in printed_json(capsys, "sizes", "qa")} >= {"small", "base"}


def test_runs_are_printed_as_json(tiny_run: Run, capsys: Capture) -> None:
    (entry,) = printed_json(capsys, "adapters", "list", str(tiny_run.folder.parent))
    assert entry["name"] == tiny_run.folder.name and entry["rank"] == 8
    assert printed_json(capsys, "adapters", "show", str(tiny_run.folder))["metrics"]["steps"] > 0


def test_answers_are_printed_as_json_without_progress(tiny_run: Run, capsys: Capture) -> None:
    assert lora_ft(["generate", str(tiny_run.folder), "abc", "def", "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert [row["input"] for row in json.loads(shown.out)] == ["abc", "def"]
    assert all("output" in row for row in json.loads(shown.out)) and shown.err == ""
