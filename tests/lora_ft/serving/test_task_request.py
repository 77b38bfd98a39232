"""Requests of POST /v1/generate: rows, options, and which field an error names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.generation_options import Options
from lora_ft.serving.chat_request import read_chat
from lora_ft.serving.completion_request import read_completion
from lora_ft.serving.errors import RequestError
from lora_ft.serving.limits import Limits
from lora_ft.serving.task_request import OPTIONS, check_room, read_task_request, task_fields

LIMITS = Limits(rows=8, answers=4, new_tokens=100)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=6), values, max_size=4),
    max_leaves=12,
)
NAMES = ["model", "rows", "prompt", "messages", "stream", "stream_options", "stop", "n", "labels", "raw", *OPTIONS]


def read(**fields: Any) -> Any:
    return read_task_request({"model": "m", "rows": [{"text": "hello"}], **fields}, LIMITS)


def test_a_single_row_needs_no_list() -> None:
    assert read(rows={"text": "a"}).rows == ({"text": "a"},)
    assert read(rows="a").rows == ("a",)
    assert read(rows=["a", {"text": "b"}]).rows == ("a", {"text": "b"})


def test_every_option_of_generation_is_a_field() -> None:
    assert set(OPTIONS) <= set(task_fields(LIMITS).schema()["properties"])


def test_options_reach_the_model_unchanged() -> None:
    options = {
        "num_beams": 3,
        "early_stopping": "never",
        "length_penalty": -1,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[4], [5, 6]],
        "forced_eos_token_id": [1],
        "labels": ["yes", "no"],
    }
    assert read(**options).options == options
    Options.of({name: value for name, value in options.items() if name != "labels"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [1]}, "rows[0]"),
        ({"rows": ["a"] * 9}, "rows"),
        ({"rows": ["a"] * 3, "num_beams": 3}, "num_beams"),
        ({"max_new_tokens": 101}, "max_new_tokens"),
        ({"num_return_sequences": 5}, "num_return_sequences"),
        ({"temperature": 0}, "temperature"),
        ({"do_sample": 1}, "do_sample"),
        ({"early_stopping": "maybe"}, "early_stopping"),
        ({"seed": [1, 2]}, "seed"),
        ({"bad_words_ids": [[]]}, "bad_words_ids[0]"),
        ({"suppress_tokens": [-1]}, "suppress_tokens[0]"),
        ({"labels": [1]}, "labels[0]"),
        ({"raw": "yes"}, "raw"),
        ({"label_scores": True, "stream": True}, "label_scores"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_an_impossible_request_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        read(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_the_tasks_own_beams_count_as_rows() -> None:
    check_room(3, {}, {"num_beams": 2}, LIMITS, "rows")
    with pytest.raises(RequestError, match="too many rows") as error:
        check_room(3, {}, {"num_beams": 4}, LIMITS, "rows")
    assert error.value.param == "rows"


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), ANYTHING, max_size=6))
def test_any_json_is_read_or_refused_with_a_400(body: dict[str, Any]) -> None:
    for read_body in (read_task_request, read_completion, read_chat):
        try:
            read_body({"model": "m", **body}, LIMITS)
        except RequestError as error:
            assert error.status == 400
            assert error.body()["error"]["message"]


def test_samples_of_a_consensus_need_rows() -> None:
    read(rows=["a", "b"], do_sample=True, mbr=4)
    with pytest.raises(RequestError, match="too many rows") as error:
        read(rows=["a", "b"], do_sample=True, mbr=5)
    assert error.value.param == "mbr"
    read(rows=["a", "b"], do_sample=False, mbr=5)  # greedy search needs one row


def test_a_schema_is_an_object() -> None:
    assert read(json_schema={"type": "object"}).options == {"json_schema": {"type": "object"}}
    with pytest.raises(RequestError) as error:
        read(json_schema="schema.json")
    assert error.value.param == "json_schema"
