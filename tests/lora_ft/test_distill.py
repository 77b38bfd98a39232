"""A teacher writes the targets of rows; a task trains on them, and a killed job continues without a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import LoraFtError, OutputExistsError, UsageError
from lora_ft.distill import _CHUNK, distill
from lora_ft.models.loading import load
from lora_ft.models.model import Model
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import tiny_row, write_task

ROWS = [{"text": tiny_row(i, "more")["text"], "number": i} for i in range(_CHUNK + 9)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_targets_are_the_teachers_answers(tiny_run: Run, tmp_path: Path) -> None:
    result = distill(tiny_run.folder, ROWS, tmp_path / "out", options={"num_beams": 2})
    answers = load(tiny_run.folder).answers(ROWS, num_beams=2)
    kept = [(row, answer.text) for row, answer in zip(ROWS, answers, strict=True) if answer.text and not answer.cut]
    assert lines(result.file) == [{**row, "answer": text} for row, text in kept]
    assert (result.rows, result.target) == (len(kept), "answer")
    assert result.cut == sum(answer.cut for answer in answers) > 0
    assert result.rows + result.cut + result.empty == len(ROWS)
    record = json.loads((tmp_path / "out" / "distill.json").read_text())
    assert record["teacher"] == str(tiny_run.folder) and record["options"]["num_beams"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["distill.json", "rows.jsonl"]


def test_the_consensus_of_samples_can_be_the_target(tiny_run: Run, tmp_path: Path) -> None:
    options = {"mbr": 4, "temperature": 0.7}
    result = distill(tiny_run.folder, ROWS[:9], tmp_path / "out", options=options)
    answers = load(tiny_run.folder).answers(ROWS[:9], **options, do_sample=True, seed=0)
    expected = [answer.text for answer in answers if answer.text and not answer.cut]
    assert [line["answer"] for line in lines(result.file)] == expected != []
    record = json.loads((tmp_path / "out" / "distill.json").read_text())["options"]
    assert record["do_sample"] and record["mbr"] == 4 and record["seed"] == 0


def test_a_task_trains_on_the_targets(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    file = distill(tiny_run, ROWS, tmp_path / "out").file
    lengths = {"long_targets": "cut"}  # an answer of 24 tokens may be read as more
    task = write_task(tmp_path, tiny_base, data={"train": str(file)}, lengths=lengths, train={"max_steps": 2})
    assert train(load_task(task), tmp_path / "run").metrics["rows"]["train"] == len(lines(file))


def test_a_bundle_writes_the_targets_of_texts(published: Path, tmp_path: Path) -> None:
    texts = ["abc", "more words"]
    result = distill(published, texts, tmp_path / "out")
    model = load(published)
    answers = zip(texts, model.answers(texts), strict=True)
    column = model.prompt.single if model.prompt else "input"
    expected = [{column: text, "target": answer.text} for text, answer in answers if answer.text and not answer.cut]
    assert lines(result.file) == expected != []
    assert result.target == "target"


def test_a_data_set_without_targets_is_an_error(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match="are empty or cut"):
        distill(tiny_run, ROWS[:3], tmp_path / "out", options={"max_new_tokens": 1})
    assert not (tmp_path / "out").exists()


def test_a_killed_job_continues_with_the_same_targets(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(tiny_run, ROWS, tmp_path / "whole").file.read_bytes()
    answer, asked = Model.answers, []

    def answers(model: Model, rows: Any, **options: Any) -> Any:
        asked.append(len(rows))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(model, rows, **options)

    monkeypatch.setattr(Model, "answers", answers)
    with pytest.raises(KeyboardInterrupt):
        distill(tiny_run, ROWS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with open(tmp_path / "out.unfinished" / "answers.jsonl", "a") as file:
        file.write('{"text": "half a li')
    with pytest.raises(UsageError, match="an unfinished job exists"):
        distill(tiny_run, ROWS, tmp_path / "out")
    with pytest.raises(UsageError, match=r"changed: options, rows_sha256"):
        distill(tiny_run, ROWS[1:], tmp_path / "out", options={"num_beams": 3}, resume=True)
    result = distill(tiny_run, ROWS, tmp_path / "out", resume=True)
    assert asked == [_CHUNK, 9, 9]
    assert result.file.read_bytes() == whole
    assert not (tmp_path / "out.unfinished").exists()


def test_rows_are_any_iterable(tiny_run: Run, tmp_path: Path) -> None:
    result, same = (distill(tiny_run.folder, rows, tmp_path / type(rows).__name__) for rows in (ROWS, iter(ROWS)))
    assert result.file.read_text() == same.file.read_text()
    text = lines(result.file)[0]["text"]
    assert distill(tiny_run.folder, text, tmp_path / "text").rows == 1


def test_outputs_and_rows_that_do_not_fit_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows to distill"):
        distill(tiny_run, [], tmp_path / "out")
    with pytest.raises(UsageError, match="row 2: "):
        distill(tiny_run, [ROWS[0], {"other": "x"}], tmp_path / "out")
    with pytest.raises(UsageError, match="does not exist"):
        distill(tiny_run, ROWS[:2], tmp_path / "out", resume=True)
    assert not list(tmp_path.iterdir())
    distill(tiny_run, ROWS[:2], tmp_path / "out")
    with pytest.raises(OutputExistsError, match="already exists"):
        distill(tiny_run, ROWS[:2], tmp_path / "out")
    assert distill(tiny_run, ROWS[:3], tmp_path / "out", overwrite=True).rows <= 3


def test_command_reads_a_file_of_rows(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[:3]))
    command = [
        "distill",
        str(tiny_run.folder),
        "--input",
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--num-beams",
        "2",
    ]
    assert lora_ft(command) == 0
    assert "rows with targets in the column answer" in capsys.readouterr().out
    assert (tmp_path / "out" / "rows.jsonl").is_file()
