"""Uploaded files contain no local path, and keep everything that is needed to use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.publishing.redaction import base_name, is_hub_name, public_record, public_task, without_paths
from lora_ft.tasks.files import load_task, save_task, task_text

MakeTask = Callable[..., Path]
WORDS = st.text("abcxyz0189_-", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ana/base", "base"),
        ("/home/ana/my models/base v2", "base v2"),
        ("no file /home/ana/rows/train.jsonl; set data.root", "no file train.jsonl; set data.root"),
        ("see ~/rows/train.jsonl", "see train.jsonl"),
        ("C:\\Users\\ana\\base", "base"),
        ("https://huggingface.co/google/flan-t5-small", "https://huggingface.co/google/flan-t5-small"),
        ("google/flan-t5-small", "google/flan-t5-small"),
        ("rows of ../../ana/secret/train.jsonl", "rows of train.jsonl"),
        ("~ana/rows.jsonl is empty", "rows.jsonl is empty"),
        ("wait... and ../ or ~ alone", "wait... and ../ or ~ alone"),
        ("and/or, 1/2, a / b", "and/or, 1/2, a / b"),
        ("samples/s", "samples/s"),
    ],
)
def test_only_absolute_paths_are_reduced_to_their_last_part(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@given(
    st.lists(WORDS, min_size=2, max_size=5), st.sampled_from(["", "in ", "(", "'"]), st.sampled_from(["", " is", ")"])
)
def test_no_folder_of_a_path_remains(parts: list[str], before: str, after: str) -> None:
    assert "/" not in without_paths(f"{before}/{'/'.join(parts)}{after}")


def test_nested_record_is_redacted_and_keeps_its_shape() -> None:
    record = {"base": {"name": "/a/b"}, "list": ["/c/d/e", 1.5, None], "/f/g": True}
    assert public_record(record) == {"base": {"name": "b"}, "list": ["e", 1.5, None], "/f/g": True}


def test_hub_names_are_told_from_folders(tmp_path: Path) -> None:
    names = ("google/flan-t5-small", "t5-small", "offline", "./base", "~/base", str(tmp_path))
    assert [is_hub_name(name) for name in names] == [True, True, False, False, False, False]
    assert [base_name(name) for name in names[:4]] == ["google/flan-t5-small", "t5-small", "offline", "./base"]
    assert base_name(str(tmp_path)) == f"./{tmp_path.name}"


def test_public_task_has_rows_and_base_next_to_it(make_task: MakeTask, tmp_path: Path) -> None:
    """A prompt that looks like a path is text and stays unchanged."""
    elsewhere = tmp_path / "elsewhere" / "test.jsonl"
    elsewhere.parent.mkdir()
    path = make_task(prompt="/say/it: {text}", data={"validation": str(path_below(tmp_path)), "test": [str(elsewhere)]})
    task = load_task(path)
    public = public_task(task)
    assert public.data.root is None and public.base == "./base" and public.prompt == task.prompt
    assert (public.data.train, public.data.validation, public.data.test) == (
        "train.jsonl",
        "validation.jsonl",
        ["test.jsonl"],
    )
    assert public.model_copy(update={"data": task.data, "base": task.base}) == task
    save_task(public, tmp_path / "task.yaml")
    assert load_task(tmp_path / "task.yaml").base == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../secret-client/train.jsonl", "train.jsonl"),
        ("rows/../../secret-client/*.jsonl", "*.jsonl"),
        ("~/secret-client/train.jsonl", "train.jsonl"),
        ("./rows/../train.jsonl", "train.jsonl"),
        ("rows/train.jsonl", "rows/train.jsonl"),
    ],
)
def test_public_task_names_no_folder_above_its_own(make_task: MakeTask, name: str, expected: str) -> None:
    path = make_task(data={"train": name, "validation": [name, "b.jsonl"]})
    public = public_task(load_task(path)).data
    assert (public.train, public.validation) == (expected, [expected, "b.jsonl"])


def test_public_task_has_schema_and_encoder_next_to_it(make_task: MakeTask, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for schema, model, expected in (
        ("schemas/note.json", str(encoder), ("./note.json", "./encoder")),
        ("fhir-r4", "org/encoder", ("fhir-r4", "org/encoder")),
    ):
        task = load_task(make_task(evaluate={"json_schema": schema, "bertscore_model": model, "nli_model": model}))
        public = public_task(task).evaluate
        assert (public.json_schema, public.bertscore_model) == expected
        assert public.nli_model == public.bertscore_model
        assert str(tmp_path) not in task_text(public_task(task))


def path_below(tmp_path: Path) -> Path:
    return tmp_path / "task-tiny" / "validation.jsonl"
