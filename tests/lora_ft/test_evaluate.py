"""Evaluation scores every kind of model alike, with intervals, and writes its answers to a file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.compare import compare
from lora_ft.core.errors import UsageError
from lora_ft.evaluate import evaluate
from lora_ft.evaluation.metrics import measure
from lora_ft.export_onnx import export_onnx
from lora_ft.merge import merge
from lora_ft.runs.run import Run
from lora_ft.tasks.evaluate import Evaluate
from lora_ft.tasks.files import load_task
from lora_ft.tasks.metric_names import ROUGE, SCORES_OF


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """Return a copy of the tiny run, since evaluation writes into the folder."""
    return Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def test_scores_and_answers_are_written_to_the_run_folder(run: Run) -> None:
    result = evaluate(str(run.folder))
    assert set(result.scores) == set(ROUGE)
    lines = [json.loads(line) for line in (run.folder / "predictions-test.jsonl").read_text().splitlines()]
    assert len(lines) == result.rows == 6
    assert result.scores["rouge1"].mean == pytest.approx(sum(line["rouge1"] for line in lines) / 6, abs=0.01)
    assert result.model.cut_share == sum(line["cut"] for line in lines) / 6
    assert json.loads((run.folder / "scores-test.json").read_text())["scores"]["model"] == str(run.folder)


def test_a_run_that_cannot_be_written_is_refused_before_generating(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != run.folder)
    monkeypatch.setattr(
        sys.modules[evaluate.__module__], "_evaluate", lambda *arguments: pytest.fail("answers were generated")
    )
    for answers in (None, tmp_path / "answers.jsonl"):
        with pytest.raises(UsageError, match=f"{run.folder} is read-only; copy the run"):
            evaluate(str(run.folder), predictions=answers)


def test_folder_adapter_of_a_run_is_scored_as_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(str(run.folder)).scores
    for path in (run.folder / "scores-test.json", run.folder / "predictions-test.jsonl"):
        path.unlink()
    assert evaluate(str(run.adapter)).scores == expected
    assert (run.folder / "scores-test.json").is_file() and (run.folder / "predictions-test.jsonl").is_file()
    monkeypatch.setenv("HOME", str(run.folder.parent))
    assert evaluate(f"~/{run.folder.name}", limit=2).rows == 2


def test_run_checkpoint_and_bundle_have_equal_scores(run: Run, tmp_path: Path) -> None:
    merge(run, tmp_path / "merged")
    export_onnx(str(run.folder), tmp_path / "bundle")
    task = load_task(run.folder / "task.yaml")
    scores = [
        evaluate(str(run.folder)).scores,
        evaluate(str(tmp_path / "merged")).scores,
        evaluate(str(tmp_path / "bundle"), task=task).scores,
    ]
    assert scores[0] == scores[1] == scores[2]


def test_the_baseline_is_the_untouched_base_and_the_difference_is_paired(run: Run, tiny_base: Path) -> None:
    result = evaluate(str(run.folder), baseline=True)
    alone = evaluate(str(tiny_base), task=run.task)
    assert result.baseline is not None and result.difference is not None
    assert result.baseline.scores == alone.scores
    for kind in ROUGE:
        gain = result.scores[kind].mean - result.baseline.scores[kind].mean
        assert result.difference[kind].mean == pytest.approx(gain)


def test_a_base_compared_with_itself_differs_by_zero(run: Run, tiny_base: Path) -> None:
    result = evaluate(str(tiny_base), task=run.task, baseline=True)
    assert result.difference is not None
    assert {(d.mean, d.low, d.high) for d in result.difference.values()} == {(0.0, 0.0, 0.0)}


def test_limit_and_split_select_the_rows(run: Run) -> None:
    result = evaluate(str(run.folder), split="validation", limit=2)
    assert (result.rows, result.split) == (2, "validation")
    assert len((run.folder / "predictions-validation.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(run: Run, limit: int) -> None:
    """A negative one would leave out the last rows."""
    with pytest.raises(UsageError, match=f"limit is not positive .got {limit}"):
        evaluate(str(run.folder), limit=limit)


def test_overrides_change_the_task_of_a_run(run: Run, tiny_base: Path) -> None:
    result = evaluate(str(run.folder), overrides=["evaluate.metrics=[chrf]", "evaluate.metric=chrf"], limit=2)
    assert list(result.scores) == ["chrf"]
    with pytest.raises(UsageError, match=r"evaluate\.metric=chrf needs a task"):
        evaluate(str(tiny_base), overrides=["evaluate.metric=chrf"])


def test_validation_rows_are_scored_by_default_only_without_test_rows(
    make_task: Callable[..., Path], tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(data={"test": None})
    result = evaluate(str(tiny_base), task=task)
    assert result.split == "validation" and " validation rows of " in str(result)
    assert lora_ft(["evaluate", str(tiny_base), "--task", str(task)]) == 0
    printed = capsys.readouterr()
    assert " has no test rows; scoring its validation rows" in printed.err
    assert f"{result.rows} validation rows of 'tiny'" in printed.out
    with_test = make_task(data={"test": None, "split": {"validation": 0.2, "test": 0.2}})
    assert evaluate(str(tiny_base), task=with_test).split == "test"


def test_a_task_with_training_rows_only_cannot_be_scored_by_default(
    make_task: Callable[..., Path], tiny_base: Path
) -> None:
    task = make_task(data={"test": None, "validation": None})
    with pytest.raises(UsageError, match=r"has no test rows; set data\.test, or"):
        evaluate(str(tiny_base), task=task)


def test_overlap_with_training_rows_is_reported(make_task: Callable[..., Path], tiny_base: Path) -> None:
    task = load_task(make_task(data={"test": "train.jsonl"}))
    warnings = evaluate(str(tiny_base), task=task).warnings
    assert warnings[0] == "24 test prompts are also training prompts; scores are inflated"
    assert any(text.endswith("of the answers were cut at 24 tokens (generate.max_new_tokens)") for text in warnings)


def test_a_model_without_a_task_needs_one(tiny_base: Path) -> None:
    with pytest.raises(UsageError, match="add --task"):
        evaluate(str(tiny_base))


def test_answers_do_not_replace_the_file_of_the_scored_rows(tiny_run: Run, tmp_path: Path) -> None:
    """The rows may be answers of an earlier run, a file that lora-ft may otherwise replace."""
    answers = tmp_path / "answers.jsonl"
    row = {"row": "0", "prompt": "p", "output": "o", "references": ["r"], "text": "say", "answer": "yes"}
    answers.write_text(json.dumps(row) + "\n")
    task = tiny_run.task.model_copy(update={"data": tiny_run.task.data.model_copy(update={"test": str(answers)})})
    with pytest.raises(UsageError, match="is an input"):
        evaluate(str(tiny_run.folder), task=task, predictions=answers)
    assert json.loads(answers.read_text()) == row


def test_a_base_without_the_codec_is_scored_without_the_schema(make_task: Callable[..., Path], tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    path = make_task(codec="json", generate={"json_schema": schema})
    for name in ("train", "validation", "test"):
        rows = [json.dumps({"text": f"{name} {i}", "answer": {"a": i}}) for i in range(4)]
        (path.parent / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    task = load_task(path)
    assert evaluate(task.base, task=task).scores["valid"].mean == 0


def test_scores_by_source_and_unsupported_names_are_written(make_task: Callable[..., Path], tiny_base: Path) -> None:
    metrics = ["rouge", "extractiveness", "entity_precision"]
    task = make_task(evaluate={"metrics": metrics, "bootstrap": 100})
    answers = task.parent / "answers.jsonl"
    result = evaluate(str(tiny_base), task=task, predictions=answers, baseline=True)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert set(result.scores) == {score for metric in metrics for score in SCORES_OF[metric]}
    assert result.difference is not None
    for name, score in result.scores.items():
        values = [line[name] for line in lines if line[name] is not None]
        assert score.mean == pytest.approx(sum(values) / len(values), abs=0.01) if values else 0.0
        assert (result.difference[name].mean, result.difference[name].low) == (0, 0)
    assert all(isinstance(line["unsupported"], list) for line in lines)
    # The source is the text of the row, without the template's words.
    rows = [json.loads(line) for line in (task.parent / "test.jsonl").read_text().splitlines()]
    sources = [row["text"] for row in rows]
    expected = measure(["extractiveness"], [line["output"] for line in lines], [["-"]] * 6, Evaluate(), sources)
    assert [line["coverage"] for line in lines] == pytest.approx(expected["coverage"].rows, abs=0.01)

    compared = compare([answers, answers], metrics=["rouge", "extractiveness"])
    assert compared.contenders[1].scores["coverage"].mean == pytest.approx(result.scores["coverage"].mean, abs=0.01)
    plain = task.parent / "plain.jsonl"
    plain.write_text("\n".join(json.dumps({k: v for k, v in line.items() if k != "coverage"}) for line in lines))
    assert "coverage" not in compare([answers, plain], metrics=["rouge", "extractiveness"]).contenders[0].scores
    with pytest.raises(UsageError, match="not every file has the scores of entity_precision"):
        unscored = task.parent / "unscored.jsonl"
        keys = ("prompt", "output", "references")
        unscored.write_text("\n".join(json.dumps({key: line[key] for key in keys}) for line in lines))
        compare([answers, unscored], metrics=["entity_precision"])
