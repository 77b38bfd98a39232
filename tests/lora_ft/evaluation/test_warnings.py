"""Each check warns when scores would mislead, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.splits import Example, load_splits
from lora_ft.evaluation import warnings
from lora_ft.models.backends import Answer
from lora_ft.models.bases import load_tokenizer
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task

MakeTask = Callable[..., Path]
LONG = "the printer on the second floor is out of paper again and nobody knows where the new paper is kept"


@pytest.fixture
def task(make_task: MakeTask) -> Task:
    return load_task(make_task())


def example(text: str, target: str = "x") -> Example:
    return Example(f"say: {text}", target, (target,), {"text": text, "answer": target})


def answer(text: str, cut: bool = False) -> Answer:
    return Answer(text, 3, cut)


def test_exact_and_near_duplicates_of_training_rows_are_counted_apart(task: Task) -> None:
    train = [example("something else"), example(LONG), example("the same")]
    test = [example("the same"), example("new"), example(LONG.replace("kept", "stored"))]
    checks = warnings.seen_in_training(task, "test", test, train)
    assert checks.overlap == ["same", "none", "near"]
    assert checks.warnings == [
        "1 test prompts are also training prompts; scores are inflated",
        "1 test rows nearly equal training rows, such as row 3 and training row 2; scores are inflated",
    ]


def test_the_shared_template_does_not_make_rows_duplicates(task: Task) -> None:
    long = task.model_copy(update={"prompt": f"{LONG}: {{text}}"})
    rows = [Example(f"{LONG}: {text}", "x", ("x",), {"text": text}) for text in ("first", "second")]
    assert warnings.seen_in_training(long, "test", rows[:1], rows[1:]) == warnings.RowChecks([], ["none"])


def test_rows_that_selected_the_checkpoint_are_reported(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"test": "validation.jsonl"}))
    rows = load_splits(task, ["test"]).test
    expected = ["6 test prompts are also validation prompts, which selected the checkpoint"]
    assert warnings.check_rows(task, "test", rows, may_be_selected=True).warnings == expected
    assert warnings.check_rows(task, "test", rows, may_be_selected=False).warnings == []


def test_scores_on_validation_and_training_rows_are_marked(task: Task) -> None:
    splits = load_splits(task)
    assert warnings.check_rows(task, "test", splits.test, may_be_selected=True).warnings == []
    (warning,) = warnings.check_rows(task, "validation", splits.validation, may_be_selected=True).warnings
    assert warning == "the checkpoint was selected on these validation rows; scores are inflated"
    (warning,) = warnings.check_rows(task, "train", splits.train, may_be_selected=True).warnings
    assert "training rows" in warning


def test_missing_training_rows_are_reported(task: Task) -> None:
    test = load_splits(task, ["test"]).test
    assert task.data.root is not None
    (task.data.root / "train.jsonl").unlink()
    (warning,) = warnings.check_rows(task, "test", test, may_be_selected=False).warnings
    assert warning.startswith("the training rows are missing, so overlap was not checked")


def test_references_above_the_answer_limit_are_reported(make_task: MakeTask, tiny_base: Path) -> None:
    tokenizer, references = load_tokenizer(tiny_base), [LONG, "short", "brief", "tiny"]
    task = load_task(make_task())
    expected = "25% of the references are longer than the answer limit of 24 tokens"
    assert warnings.long_references(task, references, tokenizer) == [expected]
    assert warnings.long_references(task, references[1:], tokenizer) == []
    cut = load_task(make_task(lengths={"long_targets": "cut"}))
    assert warnings.long_references(cut, references, tokenizer) == [
        f"{expected}; training cut its targets too (lengths.long_targets)"
    ]


def test_answers_cut_at_the_limit_are_reported(task: Task) -> None:
    expected = "10% of the answers were cut at 24 tokens (generate.max_new_tokens)"
    assert warnings.cut_answers(task, [answer("a", cut=i == 0) for i in range(10)]) == [expected]
    assert warnings.cut_answers(task, [answer("a", cut=i == 0) for i in range(30)]) == []


def test_empty_answers_are_counted() -> None:
    assert warnings.empty_answers(["", " \n", "a"]) == ["2 of 3 answers are empty"]
    assert warnings.empty_answers(["a"]) == []


def test_the_same_answer_to_all_rows_is_reported() -> None:
    assert warnings.same_answers(["a", "a"]) == ["all answers are the same text"]
    assert warnings.same_answers(["a", "b"]) == warnings.same_answers(["a"]) == []


def test_rouge_lsum_without_sentences_is_reported(task: Task) -> None:
    assert warnings.unsplit_sentences(task, ["one text", "another"]) == [
        "no text has more than one sentence, so rougeLsum equals rougeL"
    ]
    assert warnings.unsplit_sentences(task, ["one text", "One. Two."]) == []
    chrf_task = task.model_copy(update={"evaluate": task.evaluate.model_copy(update={"metrics": ["chrf"]})})
    assert warnings.unsplit_sentences(chrf_task, ["one text"]) == []


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        ({"language": "vi"}, False),
        ({"rouge_tokenizer": "unicode"}, False),
        ({"metrics": ["chrf"]}, False),
        ({"language": "vi", "rouge_tokenizer": "ascii"}, True),
    ],
)
def test_letters_that_rouge_ignores_are_reported(make_task: MakeTask, settings: dict[str, Any], warned: bool) -> None:
    task = load_task(make_task(evaluate=settings))
    expected = "ROUGE ignores 22% of the letters (not a to z); set evaluate.language or evaluate.rouge_tokenizer"
    assert warnings.dropped_letters(task, ["Tiếng Việt"]) == ([expected] if warned else [])
    assert warnings.dropped_letters(task, ["a" * 99 + "é"]) == []


def test_answer_warnings_run_every_check(task: Task, tiny_base: Path) -> None:
    rows = [example(str(i), LONG + " é" * 9) for i in range(2)]
    reported = warnings.answer_warnings(task, rows, [answer("", cut=True)] * 2, load_tokenizer(tiny_base))
    assert [" ".join(warning.split()[1:4]) for warning in reported] == [
        "of the references",
        "of the answers",
        "of 2 answers",
        "answers are the",
        "text has more",
        "ignores 10% of",
    ]
    assert json.dumps(reported)
