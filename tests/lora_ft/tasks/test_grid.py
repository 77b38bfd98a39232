"""Grids: one file, a task for each combination."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import TaskFaults, load_task, load_tasks

MakeTask = Callable[..., Path]


def test_every_combination_is_a_task_of_its_own(make_task: MakeTask) -> None:
    path = make_task(grid={"lora.r": [8, 16], "train.learning_rate": [0.001, 0.0003], "train.seed": [1, 2]})
    found = load_tasks(path)
    assert len(found) == 8
    task, settings = found[1]
    assert task.name == "tiny-r-8-learning_rate-0.001-seed-2"
    assert settings == {"lora.r": 8, "train.learning_rate": 0.001, "train.seed": 2}
    assert (task.lora.r, task.train.learning_rate, task.train.seed) == (8, 0.001, 2)
    assert len({one.name for one, _ in found}) == 8


def test_a_file_without_a_grid_is_one_task(make_task: MakeTask) -> None:
    path = make_task()
    assert load_tasks(path, ["train.seed=5"]) == [(load_task(path, ["train.seed=5"]), {})]


def test_values_that_no_name_may_hold_are_written_otherwise(make_task: MakeTask) -> None:
    found = load_tasks(make_task(grid={"lora.target_modules": ["q,v", "all-linear"]}))
    assert [task.name for task, _ in found] == ["tiny-target_modules-q_v", "tiny-target_modules-all-linear"]


def test_overrides_hold_for_all(make_task: MakeTask) -> None:
    found = load_tasks(make_task(grid={"lora.r": [4, 8]}), ["train.learning_rate=0.5"])
    assert [(task.lora.r, task.train.learning_rate) for task, _ in found] == [(4, 0.5), (8, 0.5)]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([8, 16], "not lists of values by key"),
        ({"lora.r": 8}, "not lists of values by key"),
        ({"lora.r": []}, "not lists of values by key"),
        ({"name": ["a", "b"]}, "cannot set 'name'"),
        ({"base.r": [1]}, "base has no keys of its own"),
    ],
)
def test_grids_that_are_none_are_refused(make_task: MakeTask, grid: object, said: str) -> None:
    path = make_task()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"grid": grid}))
    with pytest.raises(UsageError, match=said):
        load_tasks(path)


def test_faults_of_values_are_named(make_task: MakeTask) -> None:
    with pytest.raises(TaskFaults, match=r"lora\.r = -1"):
        load_tasks(make_task(grid={"lora.r": [8, -1]}))


def test_a_key_is_set_once(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match=r"--set lora\.r and the grid"):
        load_tasks(make_task(grid={"lora.r": [4, 8]}), ["lora.r=2"])


def test_commands_for_one_task_say_that_a_grid_is_several(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="a grid of tasks; train it"):
        load_task(make_task(grid={"lora.r": [4, 8]}))


def test_a_grid_of_millions_is_refused_before_it_is_made(make_task: MakeTask) -> None:
    path = make_task(
        grid={f"train.{key}": list(range(100)) for key in ("seed", "max_steps", "logging_steps", "eval_every")}
    )
    with pytest.raises(UsageError, match="100,000,000 tasks, more than 10,000"):
        load_tasks(path)


def test_a_grid_is_no_key_of_a_grid(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="cannot set 'grid"):
        load_tasks(make_task(grid={"grid.lora.r": [1]}))
