"""Section `data` of a task: combinations that are refused."""

from __future__ import annotations

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.tasks.files import load_task
from tests.lora_ft.tasks.task_files import MakeTask


def test_oversampling_without_labels_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="oversample requires labels"):
        load_task(make_task(data={"oversample": True}))


@pytest.mark.parametrize(
    ("key", "value"), [("encoding", "rot13"), ("encoding", "nope"), ("delimiter", '"'), ("delimiter", ";;")]
)
def test_invalid_encoding_and_delimiter_are_refused(make_task: MakeTask, key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"data.{key}"):
        load_task(make_task(data={key: value}))


@pytest.mark.parametrize("written", ["\\t", "'\\t'", '"\\t"'])
def test_a_tab_may_be_written_with_a_backslash(make_task: MakeTask, written: str) -> None:
    assert load_task(make_task(), [f"data.delimiter={written}"]).data.delimiter == "\t"


@pytest.mark.parametrize("key", ["encoding", "delimiter", "field"])
def test_layout_keys_are_refused_for_hub_data_sets(make_task: MakeTask, key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} is for files of rows"):
        load_task(make_task(data={"hub": "a/b", key: "," if key == "delimiter" else "utf-8"}))
