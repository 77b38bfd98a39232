"""Task files, --set and grids of any content: a task, or an error in one short line."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from lora_ft.core.errors import LoraFtError
from lora_ft.tasks.files import load_task, load_tasks, recipe_file, save_task
from lora_ft.tasks.schema import Task
from tests.conftest import write_task
from tests.fuzz.limits import fuzz, seeds, survives
from tests.fuzz.mutations import damaged_json


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a section and of those in it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys(kind, f"{prefix}{name}.")


KEYS = st.sampled_from([*keys(Task), "grid", "grid.lora.r", "zz", "data..x", "", "lora.r.x", "data.train.0"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["~nosuchuser", "/dev/null", "a\0b", "../..", "offline", "auto", "eva", "{text}", "x" * 5_000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=8,
)
WRITTEN = st.one_of(
    VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
    st.text(max_size=40),
    st.sampled_from(["!!set {}", "&a [*a]", "[" * 90, "9" * 90, "2024-01-01", "yes", "0x1F", "- a", "a: b: c", "\t"]),
)


def taken_or_refused(path: Path | str, overrides: list[str], folder: Path) -> None:
    """Load a task, and save and load it again; a refusal is one line of at most 2,000 characters, with exit code 2."""
    tasks = survives(lambda: [load_task(path, overrides), *(task for task, _ in load_tasks(path, overrides))])
    if isinstance(tasks, LoraFtError):
        assert tasks.exit_code == 2
        return
    for task in tasks:
        save_task(task, folder / "saved.yaml")
        assert load_task(folder / "saved.yaml") == task
        assert task.scoring_options()["max_new_tokens"] >= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz
@given(pairs=st.lists(st.tuples(KEYS, WRITTEN), min_size=1, max_size=3))
def test_overrides(pairs: list[tuple[str, str]], folder: Path) -> None:
    taken_or_refused("dialogue-summary", [f"{key}={value}" for key, value in pairs], folder)


@fuzz
@given(
    content=st.dictionaries(st.one_of(st.sampled_from(list(Task.model_fields)), st.just("grid")), VALUES, max_size=6)
)
def test_files_of_any_values(content: dict[str, Any], folder: Path) -> None:
    base = yaml.safe_load(recipe_file("qa").read_text(encoding="utf-8"))
    (folder / "task.yaml").write_text(yaml.safe_dump(base | content, allow_unicode=True), encoding="utf-8")
    taken_or_refused(folder / "task.yaml", [], folder)


@fuzz
@given(at=st.integers(0, 3_000), junk=st.binary(min_size=1, max_size=12))
def test_files_with_other_bytes(at: int, junk: bytes, folder: Path) -> None:
    content = recipe_file("group-chat").read_bytes()
    (folder / "broken.yaml").write_bytes(content[:at] + junk + content[at + len(junk) :])
    taken_or_refused(folder / "broken.yaml", [], folder)


@pytest.mark.parametrize("grid", [None, {"lora.r": [4, 8], "train.seed": [1, 2, 3]}, {"train.seed": [*range(50)]}])
@fuzz
@given(seed=seeds)
def test_damaged_values_of_a_whole_task(folder: Path, tiny_base: Path, grid: dict[str, Any] | None, seed: int) -> None:
    content = yaml.safe_load(write_task(folder, tiny_base).read_text())
    content["lora"] = {"r": 8, "lora_alpha": 16, "target_modules": ["q", "v"], "rank_pattern": {"q": 4}}
    content |= {"generate": {"num_beams": 2}, "evaluate": {"metrics": ["f1"]}, "card": {"language": ["en"]}}
    content |= {"grid": grid} if grid else {}
    path = folder / "damaged.yaml"
    path.write_text(yaml.safe_dump(damaged_json(Random(seed), content)), "utf-8", "surrogatepass")
    error = survives(lambda: load_tasks(path))
    assert not isinstance(error, LoraFtError) or error.exit_code == 2
