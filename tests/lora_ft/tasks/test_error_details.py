"""Errors of a task: all are reported, each with its key, a short value and the line."""

from __future__ import annotations

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import ErrorDetails, InvalidTaskError, load_task
from tests.lora_ft.tasks.task_files import MakeTask, errors_of, without


def test_all_errors_are_reported_at_once_with_key_value_and_remedy(make_task: MakeTask) -> None:
    path = make_task(
        train={"epochs": 3, "learning_rate": -0.5, "per_device_train_batch_size": "many", "optim": "sgd"},
        lengths={"source": 4},
        colour="red",
    )
    errors = errors_of(without(path, "prompt"))
    expected = {
        "prompt": (None, "missing; add it"),
        "colour": ("red", "unknown key; remove it or correct its spelling"),
        "lengths.source": (4, "greater than or equal to 8"),
        "train.epochs": (3, "unknown key; remove it or correct its spelling"),
        "train.learning_rate": (-0.5, "greater than 0"),
        "train.per_device_train_batch_size": ("many", "valid integer"),
        "train.optim": ("sgd", "adamw_torch, adamw_torch_fused, adafactor"),
    }
    assert errors.keys() == expected.keys()
    for key, (value, remedy) in expected.items():
        assert errors[key].value == value
        assert remedy in errors[key].problem
        assert str(errors[key]).startswith(f"{key} = {value!r}: ")


def test_message_has_the_file_the_first_error_and_the_command_that_shows_all(make_task: MakeTask) -> None:
    path = make_task(train={"seed": "x", "weight_decay": -1})
    with pytest.raises(InvalidTaskError) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}: {caught.value.errors[0]} (and 1 more)")
    assert f"lora-ft validate {path}" in caught.value.remedy
    assert isinstance(caught.value, UsageError) and caught.value.exit_code == 2


def test_message_of_a_single_error_mentions_no_others(make_task: MakeTask) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        load_task(make_task(train={"seed": "x"}))
    assert "more" not in str(caught.value) and not caught.value.remedy


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("train={learning_rate: 0,002}", "train.002", "write a decimal point, not a comma"),
        ("name=Meine Tickets", "name", "not a name; use letters from A to Z, digits"),
        ("data=rows.csv", "data", "not a section; write its keys below it"),
        ("lora=8", "lora", "not a section"),
    ],
)
def test_frequent_mistakes_are_named(make_task: MakeTask, override: str, key: str, words: str) -> None:
    assert words in errors_of(make_task(), override)[key].problem


def test_long_value_is_shortened() -> None:
    assert str(ErrorDetails("prompt", "x" * 500, "wrong")) == f"prompt = '{'x' * 56}...: wrong"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("labels=[yes, no]", "labels.0", 'YAML reads yes as true; quote it: "yes"'),
        ("labels=[0, 1]", "labels.0", 'YAML reads 0 as a number; quote it: "0"'),
        ("labels=[a, 1.50]", "labels.1", 'YAML reads 1.50 as a number; quote it: "1.50"'),
        ("labels=[a, null]", "labels.1", 'YAML reads null as nothing; quote it: "null"'),
        ("labels=[a, '', null]", "labels.2", "as nothing"),
        ("data.target=", "data.target", "empty; write a text"),
        ("labels=[a, On]", "labels.1", 'YAML reads On as true; quote it: "On"'),
        ("evaluate.language=no", "evaluate.language", 'YAML reads no as false; quote it: "no"'),
        ("card.language=[en, no]", "card.language.1", 'quote it: "no"'),
        ("name=2024", "name", 'quote it: "2024"'),
        ("data.target=1", "data.target", 'quote it: "1"'),
        ("data.train=[1, b.jsonl]", "data.train.0", 'quote it: "1"'),
        ("lora.new_tokens=[on]", "lora.new_tokens.0", 'quote it: "on"'),
    ],
)
def test_text_that_yaml_reads_as_another_type_must_be_quoted(
    make_task: MakeTask, override: str, key: str, words: str
) -> None:
    assert words in errors_of(make_task(), override)[key].problem


def test_error_in_a_file_has_its_line(make_task: MakeTask) -> None:
    path = make_task()
    path.write_text(path.read_text(encoding="utf-8") + "labels: [Yes, 'no']\n", encoding="utf-8")
    error = errors_of(path)["labels.0"]
    assert 'quote it: "Yes"' in error.problem and error.line == len(path.read_text().splitlines())
    assert str(error).endswith(f"(line {error.line})")


def test_messages_shorten_huge_values(make_task: MakeTask) -> None:
    path = make_task()
    huge = "[" + ", ".join(["[" + "'xxxxxxxxxx', " * 50 + "]"] * 300) + "]"
    for override in (
        f"train.seed={huge}",
        f"lengths={huge}",
        f"labels={huge}",
        f"train.optim={'y' * 10_000}",
        f"labels=['{'z' * 9_000} ', b]",
        f"{'k' * 5_000}=1",
        f"prompt={'{' * 9_000}",
    ):
        with pytest.raises(UsageError) as caught:
            load_task(path, [override])
        assert len(str(caught.value)) < 1_000
