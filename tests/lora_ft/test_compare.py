"""Comparison scores existing answers, paired by row, and refuses files that answer different rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_ft.compare import compare
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.evaluate import evaluate
from lora_ft.evaluation.metrics import difference, measure
from lora_ft.evaluation.metrics.statistics import holm
from lora_ft.runs.run import Run
from lora_ft.tasks.evaluate import Evaluate

REFERENCES = ["the cat sat on the mat", "a dog ran home", "rain all day", "nothing new"]
GOOD = ["the cat sat on a mat", "a dog ran home", "rain all day", "something else"]
BAD = ["the cat sat on a mat", "a dog", "sun", "nothing else"]


def write(file: Path, outputs: list[str], **changes: Any) -> str:
    """Write a file of answers and return its path; `changes` replace columns, one value per row."""
    rows = [
        {"row": str(i), "prompt": f"ask {i}", "output": output, "references": [reference]}
        | {key: values[i] for key, values in changes.items()}
        for i, (output, reference) in enumerate(zip(outputs, REFERENCES, strict=False))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_differences_from_the_first_model_are_paired(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{name}.jsonl", out) for name, out in (("good", GOOD), ("bad", BAD), ("same", GOOD))]
    comparison = compare(names, metrics=["rouge", "bleu"])
    first, worse, same = comparison.contenders
    assert first.differences == {}
    references = [[text] for text in REFERENCES]
    good, bad = (measure(["rouge", "bleu"], texts, references, Evaluate()) for texts in (GOOD, BAD))
    for score in ("rouge1", "rougeLsum", "bleu"):
        assert first.scores[score].mean == pytest.approx(good[score].value)
        expected = difference(bad[score], good[score], seed=0, resamples=1000)
        assert worse.differences[score].estimate == expected
        assert same.differences[score].p == 1
    assert 0 < worse.differences["rouge1"].p <= 1
    tests = [test for model in (worse, same) for test in model.differences.values()]
    assert [test.corrected for test in tests] == holm([test.p for test in tests])
    assert f"Holm: p corrected for {len(tests)} tests" in comparison.note


def test_most_changed_rows_come_first(tmp_path: Path) -> None:
    comparison = compare([write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", BAD)])
    assert comparison.by == "rouge1" and comparison.order == [2, 3, 1, 0]
    assert [comparison.change(row, comparison.contenders[1]) for row in comparison.order] == pytest.approx(
        [-100, 50, -33.3, 0], abs=0.1
    )


def test_runs_are_compared_with_the_settings_of_their_task(tiny_run: Run, tmp_path: Path) -> None:
    runs = [shutil.copytree(tiny_run.folder, tmp_path / name) for name in "ab"]
    for run in runs:
        evaluate(str(run))
    comparison = compare([str(run) for run in runs])
    assert list(comparison.contenders[0].scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = json.loads((runs[0] / "scores-test.json").read_text())["scores"]["scores"]
    assert comparison.contenders[0].scores["rouge1"].mean == pytest.approx(scores["rouge1"]["mean"])
    assert comparison.contenders[0].scores["rouge1"].low == pytest.approx(scores["rouge1"]["low"])
    assert compare([str(run) for run in runs], metrics=["chrf"]).by == "chrf"


def test_a_run_without_answers_names_the_command_to_run(tiny_run: Run, tmp_path: Path) -> None:
    run = str(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    with pytest.raises(
        UsageError, match=r"has no answers to its validation rows; run lora-ft evaluate .*run --split valid"
    ):
        compare([run, run], split="validation")


def test_runs_scored_on_validation_rows_only_are_compared_on_those(tiny_run: Run, tmp_path: Path) -> None:
    runs = [str(shutil.copytree(tiny_run.folder, tmp_path / name)) for name in "ab"]
    for run in runs:
        evaluate(run, split="validation")
    comparison = compare(runs)
    assert comparison.split == "validation"
    assert comparison.note.startswith(f"{len(comparison.prompts)} validation rows; differences from {runs[0]}")
    evaluate(runs[0])
    assert compare(runs).split == "validation"
    evaluate(runs[1])
    assert compare(runs).split == "test"


def test_different_rows_are_refused_naming_the_first(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", GOOD)
    second = write(tmp_path / "second.jsonl", BAD, row=["0", "1", "9", "3"])
    with pytest.raises(
        UsageError, match=r"first.jsonl and .*second.jsonl .*`row` of row 3 differs \('ask 2' and 'ask 2'\)"
    ):
        compare([first, second])
    second = write(tmp_path / "second.jsonl", BAD, references=[["x"]] * 4)
    with pytest.raises(UsageError, match="`references` of row 1 differs"):
        compare([first, second])
    with pytest.raises(UsageError, match=r"different numbers of rows \(4 and 2\); .*--limit"):
        compare([first, write(tmp_path / "short.jsonl", BAD[:2])])


def test_the_same_rows_with_different_prompts_are_compared(tmp_path: Path) -> None:
    prompts = [f"another way to ask {i}" for i in range(4)]
    first, second = write(tmp_path / "first.jsonl", GOOD), write(tmp_path / "second.jsonl", BAD, prompt=prompts)
    assert compare([first, second]).prompts[0] == "ask 0"
    for file in (first, second):  # files of earlier versions do not identify their rows
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        Path(file).write_text("".join(json.dumps({k: v for k, v in r.items() if k != "row"}) + "\n" for r in rows))
    with pytest.raises(UsageError, match=r"`prompt` of row 1 differs \('ask 0' and 'another way to ask 0'\)"):
        compare([first, second])


def test_unusable_models_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    first = write(tmp_path / "first.jsonl", GOOD)
    with pytest.raises(UsageError, match="name two or more runs"):
        compare([first])
    with pytest.raises(UsageError, match=r"neither a run nor a file of answers; .*--predictions FILE"):
        compare([first, str(tiny_base)])
    (tmp_path / "second.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(LoraFtError, match=r"second.jsonl:1 is not an answer"):
        compare([first, str(tmp_path / "second.jsonl")])


def test_recorded_scores_with_a_different_signature_are_reported(tiny_run: Run, tmp_path: Path) -> None:
    runs = [shutil.copytree(tiny_run.folder, tmp_path / name) for name in "ab"]
    for run in runs:
        evaluate(str(run))
    assert compare([str(run) for run in runs]).warnings == []
    path = runs[1] / "scores-test.json"
    recorded = json.loads(path.read_text())
    old = "ASCII words, stemmed; sentences by nltk punkt_tab"
    path.write_text(json.dumps(recorded | {"how": recorded["how"] | {"rougeLsum": old}}))
    (warning,) = compare([str(run) for run in runs]).warnings
    assert str(runs[1]) in warning and f"rougeLsum: {old}" in warning
    path.write_text(json.dumps({key: value for key, value in recorded.items() if key != "how"}))
    (warning,) = compare([str(run) for run in runs]).warnings
    assert "rouge1, rouge2, rougeL, rougeLsum: no signature" in warning


def test_references_that_are_not_texts_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", GOOD)
    for value in ([[{"text": "a"}]] * 4, [[1]] * 4, [[]] * 4, ["text"] * 4):
        second = write(tmp_path / "second.jsonl", BAD, references=value)
        with pytest.raises(LoraFtError, match=r"second\.jsonl:1 is not an answer"):
            compare([first, second])
