"""Searches of a tiny task: files, equality with training alone, exact resume, and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, OutputExistsError, UsageError
from lora_ft.core.ownership import foreign_reason
from lora_ft.runs.run import Run
from lora_ft.runs.search_record import SearchRecord, read_search
from lora_ft.search import SearchResult, search
from lora_ft.tasks.files import load_task
from lora_ft.train import train
from tests.conftest import write_task
from tests.lora_ft.test_train import closeness, same, wait_for, weights

pytest.importorskip("optuna", reason="needs the extra `search`")
MakeTask = Callable[..., Path]
SPACE: dict[str, Any] = {"lora.r": [2, 4, 8], "train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
# Dropout, a schedule and early stopping, so that an inexact resume shows.
SECTIONS: dict[str, Any] = {
    "search": SPACE,
    "lora": {"lora_dropout": 0.1},
    "train": {"metric_for_best_model": "loss", "num_train_epochs": 3, "early_stopping_patience": 6},
}
OPTIONS: dict[str, Any] = {"trials": 5, "group_size": 3}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> SearchResult:
    """Return an uninterrupted search, only to be read."""
    root = tmp_path_factory.mktemp("search")
    return search(write_task(root, tiny_base, **SECTIONS), root / "out", **OPTIONS)


def decisions(record: SearchRecord) -> list[Any]:
    """Return everything that a search decided, without its times."""
    trials = [(t.name, t.settings, t.state, t.step, t.scores, t.curve, t.left, t.reason) for t in record.trials]
    return [trials, [(entry.trials, entry.steps) for entry in record.rounds], record.finalists, record.winner]


def test_a_search_leaves_the_winner_its_record_and_its_page(searched: SearchResult) -> None:
    out, record = searched.out, searched.record
    assert {path.name for path in out.iterdir()} == {"search.json", "search.html", "optuna.journal", "trials", "winner"}
    content = json.loads((out / "search.json").read_text())
    assert content["version"] == 2 and content["runs_tried"] == 7 == len(record.trials)
    assert decisions(read_search(out)) == decisions(record)
    finished = {trial.name for trial in record.trials if trial.state == "finished"}
    assert {path.name for path in (out / "trials").iterdir()} == finished and len(finished) >= 4
    winner = out / "trials" / str(record.winner)
    assert {path.name for path in winner.iterdir()} == {path.name for path in (out / "winner").iterdir()}
    assert same(weights(Run(winner)), weights(searched.run))
    assert all(trial.reason.startswith("rank ") for trial in record.trials if trial.state == "paused")
    assert str(searched).startswith(f"{record.winner}: best of 5 trials, 7 runs")
    assert json.dumps(searched.as_dict()) and foreign_reason(out) is None


def test_the_winner_equals_its_task_trained_alone(searched: SearchResult, tmp_path: Path) -> None:
    alone = train(load_task(searched.run.folder / "task.yaml"), tmp_path / "alone")
    assert closeness(weights(searched.run), weights(alone)) < 1e-5
    assert searched.run.metrics["best_step"] == alone.metrics["best_step"]
    steps = [
        [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]
        for run in (searched.run, alone)
    ]
    winner = next(trial for trial in searched.record.trials if trial.name == searched.record.winner)
    first_rung = [1] if winner.repeats is None else []  # only the search scores it; repetitions do not pause
    assert steps[0] == [*first_rung, *steps[1]]
    assert searched.run.task.train.eval_every == searched.record.trials[0].steps // 4 == 4


def test_trials_keep_their_settings(searched: SearchResult) -> None:
    for trial in searched.record.trials:
        if trial.state == "finished":
            task = Run(searched.out / "trials" / trial.name).task
            assert task.lora.r == trial.settings["lora.r"] and task.train.seed == trial.seed
            assert task.train.learning_rate == trial.settings["train.learning_rate"]


def rounds(out: Path) -> int:
    return len(json.loads((out / "search.json").read_text())["rounds"]) if (out / "search.json").is_file() else 0


MOMENTS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "killed in the first round": (signal.SIGKILL, lambda out: any(out.glob("trials/*.unfinished/log.jsonl"))),
    "killed after two rounds": (signal.SIGKILL, lambda out: rounds(out) >= 2),
    "killed after a trial has finished": (signal.SIGKILL, lambda out: any(out.glob("trials/*/metrics.json"))),
    "interrupted after a round": (signal.SIGINT, lambda out: rounds(out) >= 1),
    "interrupted in a round": (signal.SIGINT, lambda out: any(out.glob("trials/*.unfinished/log.jsonl"))),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_search_resumes_with_the_same_result(
    moment: str, make_task: MakeTask, tmp_path: Path, searched: SearchResult
) -> None:
    """The resumed search has other test rows than the uninterrupted one, so the winner does not depend on them."""
    task, out = make_task(**SECTIONS), tmp_path / "out"
    (task.parent / "test.jsonl").write_text(json.dumps({"text": "other", "answer": "rows"}) + "\n")
    number, condition = MOMENTS[moment]
    options = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "lora_ft", "search", str(task), "--out", str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: condition(out), process)
    os.killpg(process.pid, number)
    process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130 and (out / "search.html").is_file()
    with pytest.raises(OutputExistsError):
        search(task, out, **OPTIONS)
    with pytest.raises(UsageError, match=r"differs from the unfinished one in .* \(options\)"):
        search(task, out, resume=True, **OPTIONS | {"trials": 6})
    resumed = search(task, out, resume=True, **OPTIONS)
    assert decisions(resumed.record) == decisions(searched.record)
    assert same(weights(resumed.run), weights(searched.run))
    with pytest.raises(UsageError, match="is finished"):
        search(task, out, resume=True, **OPTIONS)


def test_a_space_may_be_passed_with_a_task(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(train={"max_steps": 3, "metric_for_best_model": "rouge1"}))
    space = {"lora.r": [1, 2], "train.learning_rate": [1e-3, 3e37]}
    result = search(task, tmp_path / "out", space=space, trials=4, seeds=1)
    diverged = [trial for trial in result.record.trials if trial.settings["train.learning_rate"] > 1]
    assert len(diverged) == 2 and all("not finite" in trial.reason for trial in diverged)
    assert result.run.task.train.learning_rate == 1e-3 and result.record.test_metric == "rouge1"
    again = search(task, tmp_path / "out", space={"lora.r": [1]}, seeds=1, overwrite=True)
    assert len(again.record.trials) == 1


def test_trials_of_different_lengths_pause_at_their_own_rungs(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(train={"num_train_epochs": 4, "metric_for_best_model": "loss"}))
    space = {"train.per_device_train_batch_size": [2, 8]}
    record = search(task, tmp_path / "out", space=space, seeds=1).record
    long, short = sorted(record.trials, key=lambda trial: -trial.steps)
    assert (long.steps, short.steps) == (48, 12)
    for trial, scored in ((long, [3, 12, 24, 36, 48]), (short, [1, 3, 6, 9, 12])):
        assert trial.state == "finished" and [step for step, _ in trial.curve] == scored
        rungs = (scored[0], trial.steps // 4, trial.steps)
        assert trial.scores == [min(score for step, score in trial.curve if step <= rung) for rung in rungs]
    assert len(record.rounds) > 4


def test_all_trials_may_fail(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(train={"max_steps": 2, "warmup_ratio": 0.0, "metric_for_best_model": "loss"}))
    with pytest.raises(LoraFtError, match=r"no trial of the search in .* finished \(tiny-000: .* not finite"):
        search(task, tmp_path / "out", space={"train.learning_rate": [3e37, 2e37]})


def test_searches_that_cannot_begin_are_refused(make_task: MakeTask, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = load_task(make_task())
    with pytest.raises(UsageError, match="a Task has no search space"):
        search(plain, out)
    with pytest.raises(UsageError, match=r"trials is not positive \(got 0\)"):
        search(plain, out, space=SPACE, trials=0)
    with pytest.raises(UsageError, match="contains no unfinished search"):
        search(plain, out, space=SPACE, resume=True)
    with pytest.raises(UsageError, match="DoRA"):
        search(plain.model_copy(update={"lora": plain.lora.model_copy(update={"use_dora": True})}), out, space=SPACE)
    unvalidated = plain.model_copy(update={"data": plain.data.model_copy(update={"validation": None})})
    with pytest.raises(UsageError, match="has no validation rows"):
        search(unvalidated, out, space=SPACE)
    assert not out.exists()
