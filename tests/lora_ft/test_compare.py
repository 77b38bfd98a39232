"""Comparing answers: nothing is generated, pairs are rows, and other rows are refused by name."""

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
from lora_ft.runs.run import Run
from lora_ft.tasks.schema import Evaluate

REFERENCES = ["the cat sat on the mat", "a dog ran home", "rain all day", "nothing new"]
GOOD = ["the cat sat on a mat", "a dog ran home", "rain all day", "something else"]
BAD = ["the cat sat on a mat", "a dog", "sun", "nothing else"]


def write(file: Path, outputs: list[str], **changes: Any) -> str:
    """A file of answers; `changes` are columns, given by row."""
    rows = [
        {"row": str(i), "prompt": f"ask {i}", "output": output, "references": [reference]}
        | {key: values[i] for key, values in changes.items()}
        for i, (output, reference) in enumerate(zip(outputs, REFERENCES, strict=False))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_differences_are_paired_and_the_first_is_what_others_are_measured_by(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{name}.jsonl", out) for name, out in (("good", GOOD), ("bad", BAD), ("same", GOOD))]
    found = compare(names, metrics=["rouge", "bleu"])
    first, worse, same = found.contenders
    assert first.differences == {}
    several = [[text] for text in REFERENCES]
    ours, theirs = (measure(["rouge", "bleu"], texts, several, Evaluate()) for texts in (GOOD, BAD))
    for score in ("rouge1", "rougeLsum", "bleu"):
        assert first.scores[score].mean == pytest.approx(ours[score].value)
        expected = difference(theirs[score], ours[score], seed=0, resamples=1000)
        assert worse.differences[score].estimate == expected
        assert same.differences[score].p == 1
    assert 0 < worse.differences["rouge1"].p <= 1
    assert "not corrected for several models" in found.note


def test_rows_that_changed_most_come_first(tmp_path: Path) -> None:
    found = compare([write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", BAD)])
    assert found.by == "rouge1" and found.order == [2, 3, 1, 0]
    assert [found.change(row, found.contenders[1]) for row in found.order] == pytest.approx(
        [-100, 50, -33.3, 0], abs=0.1
    )


def test_runs_are_compared_by_their_own_settings(tiny_run: Run, tmp_path: Path) -> None:
    runs = [shutil.copytree(tiny_run.folder, tmp_path / name) for name in "ab"]
    for run in runs:
        evaluate(str(run))
    found = compare([str(run) for run in runs])
    assert list(found.contenders[0].scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = json.loads((runs[0] / "scores-test.json").read_text())["scores"]["scores"]
    assert found.contenders[0].scores["rouge1"].mean == pytest.approx(scores["rouge1"]["mean"])
    assert found.contenders[0].scores["rouge1"].low == pytest.approx(scores["rouge1"]["low"])
    assert compare([str(run) for run in runs], metrics=["chrf"]).by == "chrf"


def test_a_run_without_answers_says_what_to_run(tiny_run: Run, tmp_path: Path) -> None:
    run = str(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    with pytest.raises(UsageError, match=r"has not answered its validation rows; lora-ft evaluate .*run --split valid"):
        compare([run, run], split="validation")


def test_other_rows_are_refused_and_the_first_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", GOOD)
    other = write(tmp_path / "other.jsonl", BAD, row=["0", "1", "9", "3"])
    with pytest.raises(UsageError, match=r"one.jsonl and .*other.jsonl .*row 3 has another row, 'ask 2' and 'ask 2'"):
        compare([one, other])
    other = write(tmp_path / "other.jsonl", BAD, references=[["x"]] * 4)
    with pytest.raises(UsageError, match="row 1 has another references"):
        compare([one, other])
    with pytest.raises(UsageError, match=r"4 and 2 of them; row 3 is in one only; .*--limit"):
        compare([one, write(tmp_path / "short.jsonl", BAD[:2])])


def test_the_same_rows_in_another_prompt_are_compared(tmp_path: Path) -> None:
    prompts = [f"another way to ask {i}" for i in range(4)]
    one, other = write(tmp_path / "one.jsonl", GOOD), write(tmp_path / "other.jsonl", BAD, prompt=prompts)
    assert compare([one, other]).prompts[0] == "ask 0"
    for file in (one, other):  # files of earlier versions do not say which rows they come from
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        Path(file).write_text("".join(json.dumps({k: v for k, v in r.items() if k != "row"}) + "\n" for r in rows))
    with pytest.raises(UsageError, match="row 1 has another prompt, 'ask 0' and 'another way to ask 0'"):
        compare([one, other])


def test_what_is_no_contest_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    one = write(tmp_path / "one.jsonl", GOOD)
    with pytest.raises(UsageError, match="name two runs"):
        compare([one])
    with pytest.raises(UsageError, match=r"neither a run nor a file of answers; .*--predictions FILE"):
        compare([one, str(tiny_base)])
    (tmp_path / "other.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(LoraFtError, match=r"other.jsonl:1 is no answer"):
        compare([one, str(tmp_path / "other.jsonl")])


def test_runs_that_were_scored_in_another_way_are_warned_of(tiny_run: Run, tmp_path: Path) -> None:
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


def test_references_that_are_no_text_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", GOOD)
    for value in ([[{"text": "a"}]] * 4, [[1]] * 4, [[]] * 4, ["text"] * 4):
        other = write(tmp_path / "other.jsonl", BAD, references=value)
        with pytest.raises(LoraFtError, match=r"other\.jsonl:1 is no answer"):
            compare([one, other])
