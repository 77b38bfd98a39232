"""Labels of a task: derived, checked, and the only answers of a run and of its bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli.tables import show_evaluation
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.examples import Example
from lora_ft.data.labels import require_label
from lora_ft.data.splits import load_splits, with_labels
from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from lora_ft.tasks.files import InvalidTaskError, load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.validate import validate
from tests.conftest import tiny_row, write_task

MakeTask = Callable[..., Path]
LABELS = ["red", "reddish", "blue green", "grey"]
METRIC = {"metric_for_best_model": "macro_f1", "num_train_epochs": 1}


def label_rows(path: Path, **changes: str) -> Path:
    """Let the rows of a task have labels as targets; a change is of the first row of a split."""
    for split in ("train", "validation", "test"):
        rows = [tiny_row(i, split) | {"answer": LABELS[i % 4]} for i in range(24 if split == "train" else 6)]
        if split in changes:
            rows[0]["answer"] = changes[split]
        (path.parent / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Trained with `labels: auto`."""
    folder = tmp_path_factory.mktemp("labels")
    task = label_rows(write_task(folder, tiny_base, labels="auto", train=METRIC))
    return train(load_task(task), folder / "run")


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_onnx(str(run.folder), folder := tmp_path_factory.mktemp("labels-onnx") / "bundle")
    return folder


def test_a_run_holds_the_labels_it_found(run: Run) -> None:
    assert run.task.labels == sorted(LABELS)
    assert run.metrics["best_metric"] == run.metrics["evaluations"][0]["eval_macro_f1"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}], ids=str)
def test_run_and_bundle_answer_with_labels_alone(run: Run, bundle: Path, options: dict[str, Any]) -> None:
    texts = ["abc", "the colour of rust", "", "x" * 40]
    generators = {
        kind: generate(load(str(model)), texts, options) for kind, model in (("run", run.folder), ("bundle", bundle))
    }
    assert set(generators["run"]) | set(generators["bundle"]) <= set(LABELS)
    if "do_sample" not in options:
        assert generators["run"] == generators["bundle"]
    free = load(str(bundle)).backend.generate(texts, {"max_new_tokens": 24, "labels": []})
    assert not {answer.text for answer in free} & set(LABELS)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_new_tokens": 4}, "max_new_tokens 4 cuts allowed answers"),
        ({"min_new_tokens": 12}, "min_new_tokens and allowed answers exclude"),
        ({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size and allowed answers exclude"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids and allowed answers exclude"),
    ],
    ids=str,
)
def test_options_that_cut_or_ban_a_label_are_refused_by_run_and_bundle_alike(
    run: Run, bundle: Path, options: dict[str, Any], part: str
) -> None:
    for model in (run.folder, bundle):
        with pytest.raises(UsageError, match=part):
            generate(load(str(model)), ["abc"], options)


def test_options_that_ban_nothing_are_taken(run: Run) -> None:
    options = {"no_repeat_ngram_size": 0, "bad_words_ids": None, "suppress_tokens": None}
    assert generate(load(str(run.folder)), ["abc"], options)[0] in LABELS


def test_scores_of_labels_are_reported_with_rouge(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "run")
    result = evaluate(str(copy), baseline=True)
    show_evaluation(result)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("accuracy", "macro_f1", "valid labels", "100.0%"))
    assert max(map(len, shown.split("answers:")[0].splitlines())) <= 80
    scores = json.loads((copy / "scores-test.json").read_text())["scores"]
    assert scores["valid_labels"] == 1.0 and set(scores["labels"]) == set(LABELS)
    assert scores["scores"]["accuracy"]["low"] <= scores["scores"]["accuracy"]["mean"]
    assert not any("rougeLsum" in warning for warning in result.warnings)  # labels are no sentences
    assert sum(label["rows"] for label in scores["labels"].values()) == result.rows == 6
    assert result.difference is not None and {"accuracy", "macro_f1"} <= result.difference.keys()
    free = run.task.model_copy(update={"generate": run.task.generate.model_copy(update={"constrained": False})})
    loose = evaluate(str(copy), task=free).model.valid_labels
    assert loose is not None and loose < 1


def test_a_precision_is_scored_on_labels(run: Run, tmp_path: Path) -> None:
    exported = export_onnx(str(run.folder), tmp_path / "bundle", precision="int8", force=True)
    assert len(exported.tradeoff) == 2
    assert load(str(tmp_path / "bundle")).backend.generate(["say: a"], {})[0].text in LABELS


def test_listed_labels_are_unchanged(make_task: MakeTask) -> None:
    task = load_task(label_rows(make_task(labels=LABELS)))
    assert with_labels(task) is task and task.known_labels == LABELS
    assert load_splits(task).test[1].target == "reddish"


def test_a_stopped_run_with_found_labels_can_be_resumed(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(label_rows(make_task(labels="auto", train={**METRIC, "num_train_epochs": 2})))
    whole = train(task, tmp_path / "whole")
    working = tmp_path / "again.unfinished"
    shutil.copytree(whole.folder, working)
    shutil.rmtree(working / "adapter")
    assert train(task, tmp_path / "again", resume=True).task.labels == sorted(LABELS)


def test_target_that_is_not_a_label_is_refused_with_a_suggestion(make_task: MakeTask) -> None:
    task = load_task(label_rows(make_task(labels=LABELS), validation="blue  green"))
    with pytest.raises(LoraFtError, match=r"validation\.jsonl:1: 'blue  green' is not among.*'blue green'\?"):
        load_splits(task)
    task = load_task(label_rows(make_task(labels="auto"), test="zzz"))
    with pytest.raises(
        LoraFtError, match=r"test\.jsonl:1: 'zzz' is not among the task's labels; use one of 'blue green'"
    ):
        load_splits(with_labels(task))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("red", "labels are not a list of texts"),
        (["red", 5], "labels are not a list of texts"),
        (["é", "ü"], "characters that T5's vocabulary lacks"),
        (["red", "red▁ish"], "changes the label"),
    ],
)
def test_labels_of_a_call_that_no_answer_can_be_are_refused(run: Run, bundle: Path, labels: Any, message: str) -> None:
    for model in (load(str(run.folder)), load(str(bundle))):
        with pytest.raises(UsageError, match=message):
            model.generate(["abc"], labels=labels)


def test_labels_of_a_call_hold_in_a_stream(bundle: Path) -> None:
    model = load(str(bundle))
    assert "".join(model.stream(["abc"], labels=["yes"])) == "yes\n"


def test_labels_that_look_alike_are_shown_by_their_codes() -> None:
    with pytest.raises(LoraFtError, match=r"'cafe\\u0301' is not among") as caught:
        require_label("cafe\u0301", ["caf\u00e9", "tea"], "rows.csv:2")
    assert caught.value.remedy == "did you mean 'caf\\xe9'?"


@pytest.mark.parametrize(
    ("labels", "changes", "part"),
    [
        (["red", "réd"], {}, "characters that T5's vocabulary lacks"),
        (["red", "red▁ish"], {}, "changes the label 'red▁ish' to 'red ish'"),
        (["red ish", "red▁ish"], {}, "'red ish' and 'red▁ish' have the same tokens"),
        (LABELS[1:], {"lengths": {"target": 8}}, "'reddish' has 9 tokens, more than lengths.target = 8"),
        (LABELS, {"generate": {"max_new_tokens": 10}}, "more than generate.max_new_tokens = 10"),
    ],
)
def test_labels_that_cannot_be_written_are_faults(
    make_task: MakeTask, labels: list[str], changes: dict[str, Any], part: str
) -> None:
    path = make_task(labels=labels, **changes)
    for split in ("train", "validation", "test"):
        rows = [tiny_row(i, split) | {"answer": labels[i % 2]} for i in range(6)]
        (path.parent / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    errors = {error.key: error.problem for error in validate(str(path)).errors}
    assert part in errors["labels"]
    with pytest.raises(UsageError, match="the label"):
        train(load_task(path), path.parent / "run")


def test_validate_reports_targets_that_are_not_labels(make_task: MakeTask) -> None:
    report = validate(str(label_rows(make_task(labels=LABELS), train="rde")))
    assert [error.key for error in report.errors] == ["data.train"] and "'rde'" in report.errors[0].problem
    assert validate(str(label_rows(make_task(labels="auto")))).errors == []


def test_labels_that_are_found_are_bounded_as_those_that_are_listed(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ft.data.splits.MAX_LABELS", 2)
    path = label_rows(make_task(labels="auto"))
    [error] = validate(str(path)).errors
    assert error.key == "labels" and "4 distinct targets, too many for labels (at most 2)" in error.problem
    with pytest.raises(UsageError, match="at most 2"):
        train(load_task(path), path.parent / "run")


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"labels": ["red"]}, "at least two labels"),
        ({"labels": ["red", "red"]}, "is listed twice"),
        ({"labels": ["red", " "]}, "is empty or has surrounding blanks"),
        ({"train": {"metric_for_best_model": "accuracy"}}, "train.metric_for_best_model = accuracy requires labels"),
        ({"evaluate": {"metric": "macro_f1"}}, "evaluate.metric = macro_f1 requires labels"),
        ({"evaluate": {"metrics": ["rouge", "classification"]}}, "evaluate.metrics = classification requires labels"),
        ({"labels": LABELS, "codec": "json"}, "labels are text, not JSON"),
        ({"labels": "auto", "generate": {"min_new_tokens": 2}}, "generate.min_new_tokens may leave no label"),
    ],
)
def test_faults_of_the_schema(make_task: MakeTask, sections: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidTaskError, match=part):
        load_task(make_task(**sections))


def test_tasks_without_labels_have_no_option_for_them(make_task: MakeTask) -> None:
    task: Task = load_task(make_task())
    assert task.known_labels == [] and task.generation_options() == {"max_new_tokens": 24}


def test_a_single_label_is_refused_before_training(tmp_path: Path, tiny_base: Path) -> None:
    task = load_task(write_task(tmp_path, tiny_base, labels="auto", train={"metric_for_best_model": "loss"}))
    rows = [Example("a", "x", ("x",), {}), Example("b", "x ", ("x",), {})]
    with pytest.raises(UsageError, match="all training rows have the label 'x'"):
        with_labels(task, rows)
