"""The study of scores: each task is measured once, and the page shows the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies import scores
from benchmarks.studies.scores import PAGE, RESULTS, TASKS, measure, page
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Silent
from lora_ft.tasks.files import load_task
from tests.conftest import write_task
from tests.tiny import JSON_MARKS, save_tiny_t5, tiny_tokenizer


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_own_name(name: str) -> None:
    assert load_task(scores.TASK_FILES / f"{name}.yaml" if TASKS[name] else name).name == name


def test_tasks_are_trained_and_scored_once(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = write_task(tmp_path, tiny_base, train={"max_steps": 2})
    task.rename(tmp_path / "tiny.yaml")
    rows = [json.loads(line) for line in (task.parent / "test.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"refs": [row["answer"], "zz"]}) for row in rows]
    (task.parent / "test.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(scores, "TASKS", {"tiny": task.parent.name})
    results = tmp_path / "scores.json"
    measure(tmp_path, tmp_path, tmp_path / "runs", results, [], Silent(), tried=3)
    figures = json.loads(results.read_text())
    result = figures["tasks"]["tiny"]
    assert result["rows"] == 6 and result["training"]["steps"] == 2
    shown = page(figures)
    before, after = (f"{result[key]['rouge1']['mean']:.1f} [" for key in ("baseline", "scores"))
    assert (
        f"| rouge1 | {before}" in shown and f"| {after}" in shown and "lora-ft evaluate runs/tiny --baseline" in shown
    )
    several, alone = result["several"], result["scores"]["rouge1"]["mean"]
    assert several["references"] == 2
    assert several["best"]["rouge1"] == pytest.approx(alone)  # no answer contains "zz"
    assert several["average"]["rouge1"] == pytest.approx(alone / 2)
    assert "against each of 2 references, averaged" in shown
    assert "Runs that were tried for this table: 3." in shown and "schema" not in shown
    monkeypatch.setattr(scores, "train", None)  # training again would fail
    measure(tmp_path, tmp_path, tmp_path / "runs", results, ["tiny"], Silent())
    assert json.loads(results.read_text()) == figures
    results.unlink()
    measure(tmp_path, tmp_path, tmp_path / "runs", results, [], Silent())  # the run exists
    with pytest.raises(UsageError, match="task 'nothing' does not exist"):
        measure(tmp_path, tmp_path, tmp_path / "runs", results, ["nothing"], Silent())


def test_answers_that_follow_a_schema_are_scored_without_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    base = save_tiny_t5(tmp_path / "base")
    tiny_tokenizer(JSON_MARKS).save(str(base / "tokenizer.json"))
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    task = write_task(tmp_path, base, train={"max_steps": 2}, codec="json", generate={"json_schema": schema})
    task.rename(tmp_path / "tiny.yaml")
    for name in ("train", "validation", "test"):
        file = task.parent / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"answer": {"a": 1}}) + "\n" for row in rows))
    monkeypatch.setattr(scores, "TASKS", {"tiny": task.parent.name})
    results = tmp_path / "scores.json"
    measure(tmp_path, tmp_path, tmp_path / "runs", results, [], Silent())
    figures = json.loads(results.read_text())
    result = figures["tasks"]["tiny"]
    assert result["scores"]["valid"]["mean"] == 100 > result["unconstrained"]["valid"]["mean"]
    assert "Without it: same_value 0.0" in page(figures)


@pytest.mark.skipif(not RESULTS.is_file(), reason="no results are committed")
def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(RESULTS.read_text(encoding="utf-8")))
