"""Results of verbs print as a few lines, and convert to JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ft.compare import compare
from lora_ft.core.plain import plain
from lora_ft.evaluate import BankEvaluation, Evaluation, ModelScores
from lora_ft.evaluation.metrics import Estimate
from lora_ft.merge import Merged
from lora_ft.merge_adapters import AdapterScore, MergedAdapters
from lora_ft.push import Pushed
from lora_ft.runs.run import Run
from lora_ft.validate import validate
from tests.conftest import write_task
from tests.lora_ft.test_compare import BAD, GOOD, write

SCORES = ModelScores("runs/demo", {"rouge1": Estimate(24.0, 21.0, 27.0)}, 0.0, 20.0, 3.0)
EVALUATION = Evaluation(
    "demo",
    "test",
    4,
    SCORES,
    SCORES,
    {"rouge1": Estimate(9.0, 3.0, 17.0)},
    {"rouge1": "ASCII words"},
    Path("predictions-test.jsonl"),
    ["few rows"],
)


def as_json(result: object) -> object:
    """Return a result's JSON, which must equal its plain form."""
    content = json.loads(json.dumps(result.as_dict()))  # type: ignore[attr-defined]
    assert content == plain(result)
    return content


def test_evaluation_has_scores_by_name() -> None:
    assert EVALUATION.scores["rouge1"].mean == 24.0
    assert str(EVALUATION.scores["rouge1"]) == "24.0 [21.0, 27.0]"
    assert str(EVALUATION).splitlines() == [
        "runs/demo on 4 test rows of 'demo'",
        "rouge1: 24.0 [21.0, 27.0], +9.0 [+3.0, +17.0] over the base",
        "warning: few rows",
    ]
    content = as_json(EVALUATION)
    assert isinstance(content, dict) and list(content)[:5] == ["version", "task", "split", "rows", "scores"]
    assert content["scores"]["scores"]["rouge1"] == {"mean": 24.0, "low": 21.0, "high": 27.0}
    assert content["predictions"] == "predictions-test.jsonl"


def test_bank_evaluation_names_the_adapters() -> None:
    result = BankEvaluation({"demo": EVALUATION}, {"demo": "rouge1"}, {"other": "no rows"})
    assert str(result) == "demo: rouge1 24.0 [21.0, 27.0] (4 test rows)\nother: not scored: no rows"
    assert as_json(result)["scored"]["demo"]["scores"]["model"] == "runs/demo"  # type: ignore[index]


def test_comparison_prints_its_table(tmp_path: Path) -> None:
    result = compare([write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", BAD)])
    assert "rouge1" in str(result) and result.note in str(result)
    assert len(as_json(result)["contenders"]) == 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Merged(Path("merged"), 1.5e-5, 4, 3_000_000), "merged: 3.0 MB, logits differ by at most 1.5e-05"),
        (Pushed("run", "me/demo", "https://hub/commit/1", 7, 1_500_000), "run me/demo: 7 files, 1.5 MB, https"),
    ],
)
def test_merge_and_push_results_print_one_line(result: Merged | Pushed, text: str) -> None:
    assert str(result).startswith(text) and as_json(result)


def test_merged_adapters_print_their_scores(tiny_run: Run) -> None:
    result = MergedAdapters(tiny_run, 8, [AdapterScore("one", "demo", "rouge1", 6, 20.0, 19.5)])
    assert str(result).splitlines() == [f"{tiny_run.folder}: rank 8", "one: rouge1 20.00 alone, 19.50 merged"]
    assert as_json(result)["run"]["folder"] == str(tiny_run.folder)  # type: ignore[index]


def test_validation_reports_if_the_task_can_be_trained(tmp_path: Path, tiny_base: Path) -> None:
    result = validate(str(write_task(tmp_path, tiny_base)))
    assert result.ok and str(result).startswith("tiny: ready to train") and "steps of" in str(result)
    assert as_json(result)["errors"] == []  # type: ignore[index]
    broken = validate(str(write_task(tmp_path, tiny_base, data={"train": "missing.jsonl"})))
    assert not broken.ok and "data.train" in str(broken)
