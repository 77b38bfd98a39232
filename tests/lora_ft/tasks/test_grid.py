"""Grids: a task file with one task for each combination of values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import InvalidTaskError, load_task, load_tasks

MakeTask = Callable[..., Path]


def test_each_combination_is_a_task(make_task: MakeTask) -> None:
    path = make_task(grid={"lora.r": [8, 16], "train.learning_rate": [0.001, 0.0003], "train.seed": [1, 2]})
    tasks = load_tasks(path)
    assert len(tasks) == 8
    task, settings = tasks[1]
    assert task.name == "tiny-r-8-learning_rate-0.001-seed-2"
    assert settings == {"lora.r": 8, "train.learning_rate": 0.001, "train.seed": 2}
    assert (task.lora.r, task.train.learning_rate, task.train.seed) == (8, 0.001, 2)
    assert len({task.name for task, _ in tasks}) == 8


def test_a_file_without_a_grid_is_one_task(make_task: MakeTask) -> None:
    path = make_task()
    assert load_tasks(path, ["train.seed=5"]) == [(load_task(path, ["train.seed=5"]), {})]


def test_names_replace_characters_that_are_not_allowed(make_task: MakeTask) -> None:
    tasks = load_tasks(make_task(grid={"lora.target_modules": ["q,v", "all-linear"]}))
    assert [task.name for task, _ in tasks] == ["tiny-target_modules-q_v", "tiny-target_modules-all-linear"]


def test_overrides_apply_to_every_task(make_task: MakeTask) -> None:
    tasks = load_tasks(make_task(grid={"lora.r": [4, 8]}), ["train.learning_rate=0.5"])
    assert [(task.lora.r, task.train.learning_rate) for task, _ in tasks] == [(4, 0.5), (8, 0.5)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([8, 16], "does not map keys to lists of values"),
        ({"lora.r": 8}, "does not map keys to lists of values"),
        ({"lora.r": []}, "does not map keys to lists of values"),
        ({"name": ["a", "b"]}, "cannot set 'name'"),
        ({"base.r": [1]}, "base is not a section"),
    ],
)
def test_malformed_grid_is_refused(make_task: MakeTask, grid: object, message: str) -> None:
    path = make_task()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"grid": grid}))
    with pytest.raises(UsageError, match=message):
        load_tasks(path)


def test_invalid_value_is_reported_by_its_key(make_task: MakeTask) -> None:
    with pytest.raises(InvalidTaskError, match=r"lora\.r = -1"):
        load_tasks(make_task(grid={"lora.r": [8, -1]}))


def test_key_cannot_be_set_by_both_grid_and_override(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match=r"lora\.r is set by both --set and the grid"):
        load_tasks(make_task(grid={"lora.r": [4, 8]}), ["lora.r=2"])


def test_loading_a_grid_as_one_task_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="a grid of tasks; train it"):
        load_task(make_task(grid={"lora.r": [4, 8]}))


def test_huge_grid_is_refused_before_it_is_expanded(make_task: MakeTask) -> None:
    path = make_task(
        grid={f"train.{key}": list(range(100)) for key in ("seed", "max_steps", "logging_steps", "eval_every")}
    )
    with pytest.raises(UsageError, match=r"100,000,000 tasks \(at most 10,000\)"):
        load_tasks(path)


def test_grid_cannot_set_a_grid(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="cannot set 'grid"):
        load_tasks(make_task(grid={"grid.lora.r": [1]}))
