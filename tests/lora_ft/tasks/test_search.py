"""Search spaces: every key and value is checked against the schema of tasks, with its place in the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import InvalidTaskError, load_search, load_task, load_tasks
from lora_ft.tasks.schema import Task
from lora_ft.tasks.search import Range, read_space, with_settings

MakeTask = Callable[..., Path]
SPACE: dict[str, Any] = {"lora.r": [2, 4], "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
TASK = Task(name="demo", prompt="{text}", data={"train": "rows.jsonl"}, lora={"preset": "tiny"})


def test_a_space_is_read_with_its_task(make_task: MakeTask) -> None:
    task, space = load_search(make_task(search=SPACE), ["train.num_train_epochs=7"])
    assert task == load_task(make_task(), ["train.num_train_epochs=7"])
    assert space.values == {"lora.r": [2, 4], "train.learning_rate": Range(low=1e-4, high=1e-2, log=True)}
    assert space.integers == frozenset() and space.size == math.inf


@given(
    ranks=st.lists(st.integers(1, 10_000), min_size=1, max_size=6, unique=True),
    ends=st.tuples(st.integers(1, 1_000_000), st.integers(1, 1_000_000)).filter(lambda ends: ends[0] < ends[1]),
    rates=st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)).filter(lambda ends: ends[0] < ends[1]),
    log=st.booleans(),
)
def test_valid_spaces_keep_their_values_and_types(
    ranks: list[int], ends: tuple[int, int], rates: tuple[float, float], log: bool
) -> None:
    content = {
        "lora.r": ranks,
        "lora.lora_alpha": {"low": ends[0], "high": ends[1]},
        "train.learning_rate": {"low": rates[0], "high": rates[1], "log": log},
    }
    space = read_space(content, TASK)
    assert space.integers == {"lora.lora_alpha"}
    assert space.extremes("lora.r") == ranks and space.extremes("train.learning_rate") == list(rates)
    assert read_space({"lora.r": ranks, "lora.lora_alpha": content["lora.lora_alpha"]}, TASK).size == len(ranks) * (
        ends[1] - ends[0] + 1
    )


@given(st.integers(-10, 0) | st.floats(0.1, 9.9).filter(lambda value: value % 1 != 0) | st.text("abc", max_size=3))
def test_values_outside_the_schema_are_refused_by_their_place(value: Any) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        read_space({"lora.r": [8, value]}, TASK)
    assert [error.key for error in caught.value.errors] == ["search.lora.r.1"]


@pytest.mark.parametrize(
    ("space", "key", "words"),
    [
        ([8, 16], "search", "valid dictionary"),
        ({}, "search", "at least 1"),
        ({"lora.r": 8}, "search.lora.r", "valid"),
        ({"lora.r": []}, "search.lora.r", "at least 1"),
        ({"lora.r": [8, 8]}, "search.lora.r.1", "listed twice"),
        ({"lora.rank": [8]}, "search.lora.rank", "unknown key"),
        ({"r": [8]}, "search.r", "only keys of lora and train"),
        ({"data.train": ["a", "b"]}, "search.data.train", "only keys of lora and train"),
        ({"train.seed": [1, 2]}, "search.train.seed", "the search sets it itself"),
        ({"train.eval_every": [1, 2]}, "search.train.eval_every", "the search sets it itself"),
        ({"train.precision": ["bf16", "fp32"]}, "search.train.precision", "the same in all trials"),
        ({"lora.preset": ["tiny", "large"]}, "search.lora.preset", "only fills in other keys"),
        ({"train.learning_rate": {"low": 1, "high": 0.1}}, "search.train.learning_rate", "low is not below high"),
        ({"train.weight_decay": {"low": 0, "high": 1, "log": True}}, "search.train.weight_decay", "no logarithm"),
        ({"train.learning_rate": {"low": 1e-4}}, "search.train.learning_rate.high", "missing"),
        (
            {"train.learning_rate": {"low": 1e-4, "high": 1, "step": 1}},
            "search.train.learning_rate.step",
            "unknown key",
        ),
        ({"train.learning_rate": {"low": 0, "high": 0.1}}, "search.train.learning_rate.low", "greater than 0"),
        ({"lora.r": {"low": 1.5, "high": 8}}, "search.lora.r.low", "valid integer"),
        ({"lora.lora_dropout": {"low": 0.1, "high": 2}}, "search.lora.lora_dropout.high", "less than or equal"),
    ],
)
def test_malformed_space_is_refused_by_its_place(make_task: MakeTask, space: Any, key: str, words: str) -> None:
    path = make_task()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"search": space}))
    with pytest.raises(InvalidTaskError) as caught:
        load_search(path)
    [problem] = [error.problem for error in caught.value.errors if error.key == key]
    assert words in problem


def test_an_error_names_its_line(make_task: MakeTask) -> None:
    path = make_task()
    path.write_text(path.read_text() + "search:\n  lora.r:\n  - 8\n  - -1\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(InvalidTaskError, match=rf"search\.lora\.r\.1 = -1: .* \(line {line}\)"):
        load_search(path)


def test_other_commands_refuse_a_search_space(make_task: MakeTask) -> None:
    path = make_task(search=SPACE)
    for load in (load_task, load_tasks):
        with pytest.raises(UsageError, match="run `lora-ft search` on it"):
            load(path)


def test_files_that_cannot_be_searched_are_refused(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="has no search space"):
        load_search(make_task())
    with pytest.raises(UsageError, match=r"lora\.r is set by both --set and the search space"):
        load_search(make_task(search=SPACE), ["lora.r=2"])
    with pytest.raises(UsageError, match="is a grid of tasks"):
        load_search(make_task(search=SPACE, grid={"lora.r": [2]}))


def test_settings_replace_values_and_keep_all_others() -> None:
    changed = with_settings(TASK, {"lora.r": 3, "train.learning_rate": 0.5})
    assert (changed.lora.r, changed.lora.lora_alpha, changed.train.learning_rate) == (3, TASK.lora.lora_alpha, 0.5)
    assert changed.model_copy(update={"lora": TASK.lora, "train": TASK.train}) == TASK
    with pytest.raises(InvalidTaskError, match="more than 3e\\+37"):
        with_settings(TASK, {"train.learning_rate": 1e37, "lora.loraplus_lr_ratio": 16})
