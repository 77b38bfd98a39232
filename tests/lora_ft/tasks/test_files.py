"""Task files: overrides, paths, recipes, and saving."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import InvalidTaskError, load_task, recipes, save_task
from lora_ft.tasks.schema import Task
from tests.lora_ft.tasks.task_files import MakeTask, with_base


def test_overrides_set_nested_keys_to_yaml_values(make_task: MakeTask) -> None:
    task = load_task(
        make_task(train={"max_steps": 7}),
        [
            "generate.num_beams=4",  # a section that the file lacks
            "data.split.validation=0.25",
            "train.learning_rate=2e-3",
            "train.max_steps=null",
            "train.report_to=[tensorboard, mlflow]",
            "data.skip_empty=true",
            "prompt='a = {text}'",
            "train.seed=1",
            "train.seed=2",
        ],
    )
    assert task.generate.num_beams == 4
    assert task.data.split is not None and task.data.split.validation == 0.25
    assert task.train.learning_rate == 0.002 and task.train.max_steps is None
    assert task.train.report_to == ["tensorboard", "mlflow"]
    assert task.data.skip_empty is True
    assert task.prompt == "a = {text}"
    assert task.train.seed == 2
    assert task.train.num_train_epochs == 2  # set by the file, not overridden


@pytest.mark.parametrize(
    "override", ["train.seed", "=3", "train..seed=3", ".seed=3", "train.=3", "train.report_to=[a", "name.first=x"]
)
def test_malformed_override_is_refused(make_task: MakeTask, override: str) -> None:
    with pytest.raises(UsageError, match="--set") as caught:
        load_task(make_task(), [override])
    assert not isinstance(caught.value, InvalidTaskError)


def test_paths_start_from_the_task_file_and_those_of_overrides_from_the_current_folder(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "current"
    folder.mkdir()
    path = make_task()
    monkeypatch.chdir(folder)
    data = load_task(path).data
    assert data.root == path.parent and data.train == "train.jsonl"
    data = load_task(path, ["data.train=mine.jsonl", "data.validation=[a.jsonl, b/*.jsonl]"]).data
    assert data.train == str(folder / "mine.jsonl")
    assert data.validation == [str(folder / "a.jsonl"), str(folder / "b/*.jsonl")]
    assert data.test == "test.jsonl" and data.root == path.parent
    assert load_task(path, ["data.root=rows"]).data.root == folder / "rows"
    assert load_task(path, [f"data.train={tmp_path}/x.jsonl"]).data.train == f"{tmp_path}/x.jsonl"


def test_overridden_row_paths_start_from_an_overridden_root(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_task()
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    for overrides in (["data.root=../rows", "data.train=a.jsonl"], ["data.train=a.jsonl", "data.root=../rows"]):
        data = load_task(path, overrides).data
        assert data.root is not None and data.train == "a.jsonl"
        assert (data.root / data.train).resolve() == (tmp_path / "rows" / "a.jsonl").resolve()


def test_names_of_hub_splits_are_not_resolved_as_paths(make_task: MakeTask) -> None:
    assert load_task(make_task(), ["data.hub=someone/rows", "data.train=dev"]).data.train == "dev"


def test_json_schema_is_resolved_against_its_source_and_fhir_stays_a_name(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_task(evaluate={"json_schema": "schema.json"})
    assert load_task(path).evaluate.json_schema == str(path.parent / "schema.json")
    assert load_task(path, ["evaluate.json_schema=other.json"]).evaluate.json_schema == str(tmp_path / "other.json")
    assert load_task(path, ["evaluate.json_schema=fhir-r4"]).evaluate.json_schema == "fhir-r4"


def test_data_root_starts_from_the_task_file(make_task: MakeTask, tmp_path: Path) -> None:
    path = make_task(data={"root": "rows"})
    assert load_task(path).data.root == path.parent / "rows"
    assert load_task(make_task(data={"root": str(tmp_path)})).data.root == tmp_path


def test_base_is_a_folder_next_to_the_task_file_or_a_hub_name(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_base(make_task(), "bases/mine")
    assert load_task(path).base == "bases/mine"
    (path.parent / "bases" / "mine").mkdir(parents=True)
    assert load_task(path).base == str(path.parent / "bases" / "mine")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_task(path, ["base=own"]).base == str(tmp_path / "own")
    assert load_task(path, ["base=offline"]).base == "offline"
    assert load_task(with_base(path, "./later")).base == str(path.parent / "later")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: caf\xe9\n", "not UTF-8 (byte 9)"),
        (b"name: [a\n", "is not YAML"),
        (b"name: a\n  base: b\n", "is not YAML"),
        (b"- name: a\n", "is not a task"),
        (b"just words\n", "is not a task"),
        (b"", "is not a task"),
    ],
)
def test_file_without_a_task_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_task(path)
    assert str(path) in caught.value.message and words in caught.value.message


def test_byte_order_mark_is_accepted(make_task: MakeTask) -> None:
    path = make_task()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(path).name == "tiny"


def test_recipes_load_by_name_and_are_listed_for_an_unknown_name(tmp_path: Path) -> None:
    assert load_task("dialogue-summary").name == "dialogue-summary"
    with pytest.raises(UsageError) as caught:
        load_task(tmp_path / "none.yaml")
    assert all(name in caught.value.remedy for name in recipes())


def test_file_takes_precedence_over_a_recipe_with_its_name(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dialogue-summary").write_bytes(make_task().read_bytes())
    monkeypatch.chdir(tmp_path)
    assert load_task("dialogue-summary").name == "tiny"


def test_saved_task_has_every_default_filled_in(make_task: MakeTask, tmp_path: Path) -> None:
    save_task(load_task(make_task()), tmp_path / "saved.yaml")
    content = yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="utf-8"))
    assert set(content) == set(Task.model_fields) - {"labels"}  # None, so the key is left out
    assert content["lora"]["target_modules"] == ["q", "v"] and content["train"]["lr_scheduler_type"] == "linear"
    assert content["generate"] == {"constrained": True}  # the base decides the other options
    assert content["evaluate"]["use_stemmer"] is True


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=30)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)


TASKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "name": NAMES,
        "prompt": st.tuples(TEXT, TEXT).map("{text}".join),
        "data": st.fixed_dictionaries(
            {"train": st.one_of(NAMES, st.lists(NAMES, min_size=1))},
            optional={
                "target": TEXT,
                "references": TEXT,
                "split": st.fixed_dictionaries({"test": st.floats(0, 0.99)}),
                "limit": st.fixed_dictionaries({"train": st.integers(1, 10**9)}),
            },
        ),
    },
    optional={
        "lora": st.fixed_dictionaries(
            {"preset": st.sampled_from(["tiny", "default", "large"])},
            optional={"r": st.integers(1, 999), "target_modules": st.lists(NAMES, min_size=1)},
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-12, 1e3),
                "eval_every": st.one_of(st.just("epoch"), st.integers(1, 10**9)),
                "compile": st.sampled_from(["on", "off", "auto"]),
                "report_to": st.lists(st.sampled_from(["tensorboard", "wandb"])),
            },
        ),
        "generate": st.fixed_dictionaries({"length_penalty": st.floats(-9, 9)}),
    },
)


@settings(max_examples=30, deadline=None)
@given(content=TASKS)
def test_saved_task_loads_unchanged(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    task = Task.model_validate(content)
    task.data.root = folder
    save_task(task, folder / "saved.yaml")
    assert load_task(folder / "saved.yaml") == task


@pytest.mark.parametrize("key", ["data.root", "base", "evaluate.json_schema"])
def test_home_folder_of_an_unknown_user_is_refused(make_task: MakeTask, key: str) -> None:
    with pytest.raises(UsageError, match="~nosuchuser has no home folder"):
        load_task(make_task(), [f"{key}=~nosuchuser/x"])


def test_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "fifo", "is not a file"),
        (tmp_path / ("x" * 5000), "no task file"),
        ("a\0b", "no task file"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            load_task(path)
        assert len(caught.value.message) < 200


def test_the_schema_of_answers_becomes_part_of_the_task(make_task: MakeTask, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [None, 1, "on"]}, "b": {"const": None}}}
    path = make_task(codec="json", generate={"json_schema": "answer.json"})
    (path.parent / "answer.json").write_text(json.dumps(schema), encoding="utf-8")
    task = load_task(path)
    assert task.generation_options()["json_schema"] == schema
    save_task(task, tmp_path / "saved.yaml")
    assert load_task(tmp_path / "saved.yaml").generate.json_schema == schema
    free = load_task(path, ["generate.constrained=false"])
    assert free.generation_options()["json_schema"] is False
    with pytest.raises(UsageError, match="does not exist"):
        load_task(path, ["generate.json_schema=other.json"])
    with pytest.raises(UsageError, match=r"labels and generate\.json_schema"):
        load_task(path, ["labels=[a, b]", "codec=none"])
