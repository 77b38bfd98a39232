"""The pages of runs: complete, escaped, self-contained and correct in a browser; a failed page never ends a run."""

from __future__ import annotations

import json
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.ownership import foreign_reason
from lora_ft.core.progress import Silent
from lora_ft.evaluate import evaluate
from lora_ft.reports import run_page, runs_page
from lora_ft.reports.run_report import write_run_report, write_runs_report
from lora_ft.runs.run import Run
from tests.lora_ft.reports.browser import (
    WIDTHS,
    measure,
    require_drawn,
    require_nothing_loaded,
    require_self_contained,
    require_uncut,
)

NASTY = '<script>alert(1)</script> & "quotes" </p><img src=x onerror=alert(1)> https://example.org ' + "long" * 60


class Notes(Silent):
    """Progress that records notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def evaluated(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that was scored together with its base, with awkward texts and a long log."""
    folder = shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("report") / "run")
    evaluate(str(folder), baseline=True)
    path = folder / "predictions-test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"prompt": NASTY, "output": NASTY, "references": [NASTY, "second"], "rouge1": 99.0}
    rows[0]["baseline"] |= {"rouge1": 90.0}
    rows[1]["baseline"] |= {"output": "the old answer", "rouge1": 88.0}
    rows[1] |= {"output": "the new answer", "rouge1": 1.0, "unsupported": ["Eve"]}
    rows[2] |= {"rouge1": None}  # a score that could not be computed
    path.write_text("\n".join(map(json.dumps, rows)))
    log = [{"step": step, "loss": 3 - step / 1000, "learning_rate": 1e-3} for step in range(1, 1001)]
    log += [{"step": step, "eval_loss": 3.1, "eval_rouge1": step / 50} for step in range(100, 1001, 100)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    return Run(folder)


def copies(run: Run, folder: Path, changes: list[dict[str, Any]]) -> list[Run]:
    """Write copies of a run that differ in their name, rank and metrics."""
    runs = []
    for number, change in enumerate(changes):
        copy = shutil.copytree(run.folder, folder / f"run-{number}")
        (copy / "report.html").unlink(missing_ok=True)
        task = (copy / "task.yaml").read_text().replace("name: tiny", f"name: tiny-{number}", 1)
        (copy / "task.yaml").write_text(task.replace("r: 4", f"r: {number + 1}").replace("r: 8", f"r: {number + 1}"))
        scores = json.loads((copy / "scores-test.json").read_text()) | {"task": f"tiny-{number}"}
        (copy / "scores-test.json").write_text(json.dumps(scores))
        metrics = json.loads((copy / "metrics.json").read_text()) | change
        (copy / "metrics.json").write_text(json.dumps(metrics))
        runs.append(Run(copy))
    return runs


def test_training_writes_a_report_without_scores(tiny_run: Run) -> None:
    page = (tiny_run.folder / "report.html").read_text(encoding="utf-8")
    require_self_contained(page, levels={2, 3})
    assert page.count("<svg") >= 2 and "There are no scores yet" in page
    assert "say: {text}" in page and tiny_run.metrics["versions"]["torch"] in page


def test_evaluation_adds_scores_and_answers_of_run_and_base(evaluated: Run) -> None:
    page = run_page.render(evaluated)
    require_self_contained(page, levels={2, 3})
    assert "Scores on test rows" in page and "Lengths of test rows" in page
    for column in ("run", "base", "difference"):
        assert f">{column}</th>" in page
    assert NASTY not in page and NASTY in unescape(page)
    best, _, remainder = page.partition("Worst rouge1")
    assert "Row 1 " in best and "rouge1 99.0" in best
    assert "Row 2 " in remainder.partition("Most changed rouge1")[2].partition("</article>")[0]
    assert "not in the source" in page and "Eve" in page
    assert "<del>old</del>" in page and "<ins>new</ins>" in page and "-87.0" in page


def test_answers_without_unsupported_names_have_no_table(evaluated: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(evaluated.folder, tmp_path / "run"))
    path = run.folder / "predictions-test.jsonl"
    rows = [json.loads(line) | {"unsupported": []} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    page = run_page.render(run)
    assert "0 of 6 answers have a name or number that their source lacks" in page and "Not in the source" not in page


def test_page_without_a_baseline_explains_how_to_add_it(run: Run) -> None:
    evaluate(str(run.folder))
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "add --baseline" in page and "Most changed" not in page and "difference</th>" not in page


def test_run_with_a_report_may_be_overwritten(run: Run) -> None:
    assert (run.folder / "report.html").is_file()
    assert foreign_reason(run.folder) is None


@pytest.mark.parametrize("damage", ["predictions-test.jsonl", "log.jsonl"])
def test_failed_report_is_a_note(run: Run, damage: str) -> None:
    evaluate(str(run.folder))
    (run.folder / damage).write_text("{damaged")
    notes = Notes()
    write_run_report(run, notes)
    assert len(notes.lines) == 1 and "report.html could not be written (JSONDecodeError" in notes.lines[0]


def test_page_of_another_program_is_kept(run: Run) -> None:
    (run.folder / "report.html").write_text("<!doctype html><title>mine</title>")
    notes = Notes()
    write_run_report(run, notes)
    assert "was not written by lora-ft and was kept" in notes.lines[0]
    assert "mine" in (run.folder / "report.html").read_text()


def test_several_runs_are_compared_on_one_page(evaluated: Run, tmp_path: Path) -> None:
    runs = copies(evaluated, tmp_path, [{"best_metric": 3.5}, {"best_metric": 1.25}, {"best_metric": None}])
    page = runs_page.render(runs, {"broken": "metrics.json is damaged"})
    require_self_contained(page, levels={2, 3})
    assert "3 runs · best tiny-1" in page and "broken was left out: metrics.json is damaged" in page
    assert page.index(">tiny-1<") < page.index(">tiny-0<") < page.index(">tiny-2<")
    assert ">lora.r</th>" in page and "train.seed" not in page
    assert "Scores on test rows" in page and "Validation loss" in page


def test_page_of_several_runs_is_updated_with_each_run(evaluated: Run, tmp_path: Path) -> None:
    runs = copies(evaluated, tmp_path, [{}, {}])
    notes = Notes()
    write_run_report(runs[0], notes)
    assert not (tmp_path / "report.html").exists()
    write_runs_report(tmp_path, notes)
    shutil.rmtree(runs[1].folder)
    write_run_report(runs[0], notes)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 runs" in page and notes.lines == []
    (tmp_path / "report.html").write_text(page.replace(runs_page.TITLE, "Answers compared"))
    write_run_report(runs[0], notes)
    assert "Answers compared" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_browser_shows_everything_uncut(evaluated: Run, tmp_path: Path) -> None:
    runs = copies(evaluated, tmp_path, [{"best_metric": 3.5}, {"best_metric": 1.25}])
    measured = measure(tmp_path, {"run": run_page.render(evaluated), "runs": runs_page.render(runs, {"bad": NASTY})})
    require_nothing_loaded(measured)
    for name, charts in (("run", 4), ("runs", 1)):
        for width in WIDTHS:
            page = measured[f"{name} {width}"]
            require_uncut(page, width)
            assert page["charts"] >= charts


def test_browser_draws_the_page_of_a_run(evaluated: Run, tmp_path: Path) -> None:
    require_drawn(tmp_path, run_page.render(evaluated))


def test_page_shows_the_lengths_of_training_rows(tiny_run: Run) -> None:
    prompts, targets = (tiny_run.metrics["lengths"][side] for side in ("prompts", "targets"))
    assert prompts == sorted(prompts) and prompts[-1] <= tiny_run.task.lengths.source
    assert targets == sorted(targets) and targets[-1] <= tiny_run.task.lengths.target
    assert "Lengths in tokens" in (tiny_run.folder / "report.html").read_text(encoding="utf-8")
