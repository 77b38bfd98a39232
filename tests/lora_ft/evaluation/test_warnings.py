"""Each guard speaks where scores would mislead, and only there."""

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
    assert warnings.seen_in_training(task, "test", test, train) == [
        "1 test prompts are training prompts too; scores are inflated",
        "1 test rows are nearly training rows, such as row 3 and training row 2; scores are inflated",
    ]


def test_a_template_in_common_makes_no_duplicates(task: Task) -> None:
    long = task.model_copy(update={"prompt": f"{LONG}: {{text}}"})
    rows = [Example(f"{LONG}: {text}", "x", ("x",), {"text": text}) for text in ("first", "second")]
    assert warnings.seen_in_training(long, "test", rows[:1], rows[1:]) == []


def test_rows_that_chose_the_checkpoint_are_told(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"test": "validation.jsonl"}))
    rows = load_splits(task, ["test"]).test
    expected = ["6 test prompts are validation prompts too, which chose the checkpoint"]
    assert warnings.of_rows(task, "test", rows, chosen=True) == expected
    assert warnings.of_rows(task, "test", rows, chosen=False) == []


def test_scores_on_validation_and_training_rows_say_what_they_are(task: Task) -> None:
    splits = load_splits(task)
    assert warnings.of_rows(task, "test", splits.test, chosen=True) == []
    (told,) = warnings.of_rows(task, "validation", splits.validation, chosen=True)
    assert told == "the checkpoint was chosen by these validation rows; scores are inflated"
    (told,) = warnings.of_rows(task, "train", splits.train, chosen=True)
    assert "training rows" in told


def test_training_rows_that_are_gone_are_told(task: Task) -> None:
    test = load_splits(task, ["test"]).test
    assert task.data.root is not None
    (task.data.root / "train.jsonl").unlink()
    (told,) = warnings.of_rows(task, "test", test, chosen=False)
    assert told.startswith("the training rows are not at hand, overlap was not checked")


def test_references_beyond_the_limit_of_answers_are_told(make_task: MakeTask, tiny_base: Path) -> None:
    tokenizer, references = load_tokenizer(tiny_base), [LONG, "short", "brief", "tiny"]
    task = load_task(make_task())
    told = "25% of the references have more than the 24 tokens that an answer may have"
    assert warnings.long_references(task, references, tokenizer) == [told]
    assert warnings.long_references(task, references[1:], tokenizer) == []
    cut = load_task(make_task(lengths={"long_targets": "cut"}))
    assert warnings.long_references(cut, references, tokenizer) == [
        f"{told}, and training cut its targets (lengths.long_targets)"
    ]


def test_answers_cut_at_the_limit_are_told(task: Task) -> None:
    told = "10% of the answers were cut at 24 tokens (generate.max_new_tokens)"
    assert warnings.cut_answers(task, [answer("a", cut=i == 0) for i in range(10)]) == [told]
    assert warnings.cut_answers(task, [answer("a", cut=i == 0) for i in range(30)]) == []


def test_empty_answers_are_counted() -> None:
    assert warnings.empty_answers(["", " \n", "a"]) == ["2 of 3 answers are empty"]
    assert warnings.empty_answers(["a"]) == []


def test_one_answer_to_everything_is_told() -> None:
    assert warnings.same_answers(["a", "a"]) == ["every answer is the same text"]
    assert warnings.same_answers(["a", "b"]) == warnings.same_answers(["a"]) == []


def test_rouge_lsum_that_is_rouge_l_is_told(task: Task) -> None:
    assert warnings.unsplit_sentences(task, ["one text", "another"]) == [
        "no text has more than one sentence, so rougeLsum is rougeL"
    ]
    assert warnings.unsplit_sentences(task, ["one text", "One. Two."]) == []
    other = task.model_copy(update={"evaluate": task.evaluate.model_copy(update={"metrics": ["chrf"]})})
    assert warnings.unsplit_sentences(other, ["one text"]) == []


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
def test_letters_that_rouge_drops_are_told(make_task: MakeTask, settings: dict[str, Any], warned: bool) -> None:
    task = load_task(make_task(evaluate=settings))
    told = "ROUGE drops 22% of the letters, which are not a to z: set evaluate.language or rouge_tokenizer"
    assert warnings.dropped_letters(task, ["Tiếng Việt"]) == ([told] if warned else [])
    assert warnings.dropped_letters(task, ["a" * 99 + "é"]) == []


def test_every_guard_of_answers_is_asked(task: Task, tiny_base: Path) -> None:
    rows = [example(str(i), LONG + " é" * 9) for i in range(2)]
    told = warnings.of_answers(task, rows, [answer("", cut=True)] * 2, load_tokenizer(tiny_base))
    assert [" ".join(one.split()[1:4]) for one in told] == [
        "of the references",
        "of the answers",
        "of 2 answers",
        "answer is the",
        "text has more",
        "drops 10% of",
    ]
    assert json.dumps(told)
