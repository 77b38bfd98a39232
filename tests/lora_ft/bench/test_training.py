"""The training benchmark: every recipe trains on the same rows, figures add up, and failures have a reason."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lora_ft.bench import training
from lora_ft.bench.report import Interval
from lora_ft.bench.tables import recipes
from lora_ft.bench.training import measure
from lora_ft.bench.training_report import TrainingReport
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.reports.terminal import render_table
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from tests.conftest import write_task
from tests.tiny import save_tiny_t5

STEPS, ROUNDS, BATCH = 4, 2, 4
LENGTHS = {"source": 140, "target": 24}


class Stages:
    """Progress that records the stages and the last step."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.last = 0

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
        self.stages.append((name, total))

    def advance(self, completed: int, figures: str = "") -> None:
        self.last = completed

    def note(self, text: str) -> None: ...


def task_of(root: Path, base: Path, **sections: object) -> Task:
    """Return a task with prompts of about 10 to 130 tokens, so that random batches need much padding."""
    path = write_task(root, base, **{"lengths": LENGTHS} | sections)
    rows = [{"text": "ab" * (1 + 5 * i % 60), "answer": "ba" * (1 + i % 5)} for i in range(STEPS * BATCH + 5)]
    (path.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_task(path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingReport, Stages]:
    """Measure a task on a base without dropout, so that losses can be compared. Only `ours` sets a dropout."""
    stages, folder = Stages(), tmp_path_factory.mktemp("bench")
    task = task_of(folder, save_tiny_t5(folder / "base", dropout_rate=0.0), train={"base_dropout": 0.05})
    return measure(task, steps=STEPS, rounds=ROUNDS, seed=3, progress=stages), stages


@pytest.fixture(scope="module")
def report(measured: tuple[TrainingReport, Stages]) -> TrainingReport:
    return measured[0]


def test_every_recipe_trains_on_the_same_rows(report: TrainingReport) -> None:
    """Compare tokens, which are counted in each recipe's own batches and differ if the rows do."""
    assert list(report.recipes) == ["usual", "dynamic", "ours"]
    assert report.samples == STEPS * BATCH
    for recipe in report.recipes.values():
        assert len(recipe.seconds) == len(recipe.positions) == len(recipe.loss) == ROUNDS
        tokens = (1 - recipe.padding) * sum(recipe.positions)
        assert tokens == pytest.approx(ROUNDS * report.tokens)


def test_recipes_differ_in_padding(report: TrainingReport) -> None:
    usual, dynamic, ours = report.recipes.values()
    assert set(usual.positions) == {STEPS * BATCH * sum(LENGTHS.values())}
    assert usual.padding > dynamic.padding >= ours.padding > 0


def test_recipes_report_their_choices(report: TrainingReport) -> None:
    usual, dynamic, ours = report.recipes.values()
    assert [recipe.base_dropout for recipe in (usual, dynamic, ours)] == [0.0, 0.0, 0.05]
    assert {(recipe.precision, recipe.compiled) for recipe in (usual, dynamic, ours)} == {("fp32", False)}
    assert ours.why == ["precision fp32: set by the task", "compile off: set by the task"]
    assert (report.trainable, report.lora.r, report.batch) == (6 * 2 * 8 * (32 + 24), 8, BATCH)


def test_every_recipe_lowers_the_loss(report: TrainingReport) -> None:
    for name, recipe in report.recipes.items():
        assert recipe.loss[-1] < recipe.loss[0], name
    assert report.recipes["usual"].loss == pytest.approx(report.recipes["dynamic"].loss)  # padding costs only time


def test_figures_add_up(report: TrainingReport) -> None:
    for recipe in report.recipes.values():
        seconds = statistics.median(recipe.seconds)
        assert recipe.seconds_per_step * STEPS == pytest.approx(seconds)
        assert recipe.samples_per_second * seconds == pytest.approx(report.samples)
        assert recipe.tokens_per_second * seconds == pytest.approx(report.tokens)
        shares = [a / b for a, b in zip(report.recipes["usual"].seconds, recipe.seconds, strict=True)]
        assert recipe.ratio.value == pytest.approx(statistics.median(shares))
        assert recipe.ratio.low <= recipe.ratio.value <= recipe.ratio.high
        assert 0 < recipe.start < report.seconds
    assert report.recipes["usual"].ratio.value == 1


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not report memory")
def test_memory_is_reported_for_each_process(report: TrainingReport) -> None:
    assert all(recipe.memory is not None and recipe.memory > 100 for recipe in report.recipes.values())
    assert all((recipe.gpu_memory is not None) == torch.cuda.is_available() for recipe in report.recipes.values())


def test_progress_is_reported(measured: tuple[TrainingReport, Stages]) -> None:
    assert measured[1].stages == [("starting", 3), ("timing", 3 * ROUNDS)]
    assert measured[1].last == 3 * ROUNDS


def test_report_is_read_as_it_was_written(report: TrainingReport, tmp_path: Path) -> None:
    report.write(tmp_path / "training.json")
    assert TrainingReport.read(tmp_path / "training.json") == report


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, UsageError, "No such file"),
        ("{", LoraFtError, "not valid JSON"),
        ('{"version": 9}', LoraFtError, r"got version 9, supported: 1"),
        ('{"version": 1}', LoraFtError, "task = .*: Field required"),
    ],
)
def test_invalid_report_is_refused(tmp_path: Path, content: str | None, error: type[LoraFtError], says: str) -> None:
    file = tmp_path / "training.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=says):
        TrainingReport.read(file)


def test_table_fits_80_columns(report: TrainingReport) -> None:
    """Render the widest possible figures."""
    wide = {"tokens_per_second": 123456.0, "ratio": Interval(value=10.25, low=10.01, high=10.5), "compiled": True}
    changed = {name: recipe.model_copy(update=wide) for name, recipe in report.recipes.items()}
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(render_table(recipes(report.model_copy(update={"recipes": changed}))))
    lines = screen.export_text().splitlines()
    assert lines[0].split() == ["4", "steps", "of", "4", "rows", "usual", "dynamic", "ours"]
    assert sum("10.2 [10.0, 10.5]  10.2 [10.0, 10.5]" in line for line in lines) == 1
    assert len(lines) == 11 + torch.cuda.is_available()  # none is wrapped


def test_failed_recipe_is_named_with_its_reason(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path, tiny_base, lora={"target_modules": "nothing"})
    with pytest.raises(LoraFtError, match=r"the recipe (usual|dynamic|ours) ended with .*no linear layer 'nothing'"):
        measure(task, steps=STEPS, rounds=1)


def test_killed_recipe_is_named(tmp_path: Path) -> None:
    process = training._process("ours", tmp_path, 1, 1, 0)
    process._process.kill()
    with (
        pytest.raises(LoraFtError, match="the recipe ours ended with signal 9; check that the machine has enough"),
        process,
    ):
        process.reply()


def test_unequal_rows_are_an_error() -> None:
    with pytest.raises(LoraFtError, match="did not train on the same rows: usual 8 rows of 90 tokens, ours 8 rows of"):
        training._check_equal({"usual": {"samples": 8, "real": 90}, "ours": {"samples": 8, "real": 80}})


@pytest.mark.parametrize(
    ("steps", "rounds", "says"),
    [(99, 1, r"too few training rows for a pass \(got 21, required 396\)"), (0, 1, "at least 1")],
)
def test_invalid_measurement_is_refused(tmp_path: Path, tiny_base: Path, steps: int, rounds: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        measure(task_of(tmp_path, tiny_base), steps=steps, rounds=rounds)
