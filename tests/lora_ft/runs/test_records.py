"""Malformed JSON files of a run are refused in one line by every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import LoraFtError
from lora_ft.runs.records import read_metrics, read_scores
from lora_ft.runs.run import Run

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
FIGURE = {"mean": 1.0, "low": 0.0, "high": 2}
SCORES: dict[str, Any] = {
    "task": "tiny", "rows": 6, "scores": {"scores": {"rouge1": FIGURE}}, "baseline": None, "difference": None,
    "warnings": [],
}


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    """Copy of a run that a test may damage."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "runs" / "tiny"))


def test_metrics_of_a_run_are_read(tiny_run: Run) -> None:
    assert read_metrics(tiny_run.folder / "metrics.json")["steps"] > 0


@pytest.mark.parametrize("content", ["[]", "null", "{}", "", "{", '"x"', "[" * 9_000, '{"steps": ' + "1" * 9_000 + "}"])
@pytest.mark.parametrize("command", [["adapters", "list"], ["adapters", "show"], ["compare"], ["evaluate"], ["merge"]])
def test_damaged_metrics_are_reported_in_one_line(
    run: Path, command: list[str], content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (run / "metrics.json").write_text(content, encoding="utf-8")
    folder = str(run.parent if command[-1] == "list" else run)
    more = {"compare": [folder], "merge": ["--out", str(tmp_path / "out")]}.get(command[0], [])
    code = lora_ft([*command, folder, *more])
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert code in (1, 2) and shown.startswith("error: ") and "unexpected" not in shown
    assert "metrics.json" in shown or command == ["compare"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": None}, "rows is damaged (got None)"),
        ({"rows": {"train": "24", "validation": 6}}, "rows.train is damaged (got '24')"),
        ({"speed": {}}, "speed.seconds is missing"),
        ({"best_metric": "x" * 10_000}, "best_metric is damaged"),
        ({"versions": ["torch"]}, "versions is damaged"),
        ({"steps": True}, "steps is damaged"),
    ],
)
def test_damaged_key_is_named(run: Path, change: dict[str, Any], words: str) -> None:
    path = run / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LoraFtError) as caught:
        Run(run)
    assert words in caught.value.message and len(str(caught.value)) < 400


@given(key=st.sampled_from(sorted(SCORES)), value=JSON)
def test_scores_of_any_content_are_read_or_refused(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "scores-test.json"
    path.write_text(json.dumps(SCORES | {key: value}), encoding="utf-8")
    try:
        assert read_scores(path)[key] == value
    except LoraFtError as error:
        assert str(path) in error.message


@pytest.mark.parametrize(
    "change",
    [{"scores": {"scores": {"rouge1": 3}}}, {"baseline": {"scores": {}}}, {"baseline": {"scores": {"rouge1": FIGURE}}},
     {"warnings": "none"}, {"task": None}],
)
def test_damaged_scores_are_refused_before_anything_is_generated(
    run: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "scores-test.json").write_text(json.dumps(SCORES | change), encoding="utf-8")
    for command in (["adapters", "show", str(run)], ["evaluate", str(run), "--split", "validation"]):
        assert lora_ft(command) == 1
        shown = capsys.readouterr()
        assert "scores-test.json" in shown.err and "generating" not in shown.err
