"""Requests of OpenAI's clients: what is accepted, which options follow, and which field an error names."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ft.serving.chat_request import read_chat
from lora_ft.serving.completion_request import completion_fields, read_completion
from lora_ft.serving.errors import RequestError
from lora_ft.serving.limits import Limits

LIMITS = Limits(rows=8, answers=4, new_tokens=100)
PLAIN: dict[str, Any] = {"model": "m", "prompt": "hello"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "name": "Ann", "content": "hi"}]}


def completion(**fields: Any) -> Any:
    return read_completion({**PLAIN, **fields}, LIMITS)


def chat(**fields: Any) -> Any:
    return read_chat({**CHAT, **fields}, LIMITS)


def test_a_completion_without_options_leaves_the_task_its_own() -> None:
    request = completion()
    assert request.prompts == ("hello",)
    assert request.options({"num_beams": 4, "max_new_tokens": 30}) == {}


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    assert completion(temperature=None, stop=None, n=None, logprobs=None).options({}) == {}
    assert chat(functions=None, metadata=None, parallel_tool_calls=None, reasoning_effort=None).options({}) == {}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "num_beams": 1, "top_k": 0, "temperature": 0.7}),
        ({"top_p": 0.9}, {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 0.9}),
        ({"top_p": 1}, {}),
        ({"top_p": 0}, {"do_sample": False}),
        ({"max_tokens": 7, "seed": 3}, {"max_new_tokens": 7, "seed": 3}),
        ({"logprobs": 0}, {"output_scores": True}),
    ],
)
def test_fields_become_generation_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert completion(**fields).options({}) == options


def test_sampling_keeps_the_tasks_own_top_k() -> None:
    assert completion(temperature=1).options({"top_k": 5})["top_k"] == 5


def test_several_answers_need_sampling_or_beams() -> None:
    assert completion(n=3, temperature=1).options({})["num_return_sequences"] == 3
    assert completion(n=3).options({"num_beams": 4})["num_return_sequences"] == 3
    assert completion(n=1).options({"num_beams": 4, "num_return_sequences": 2})["num_return_sequences"] == 1
    with pytest.raises(RequestError, match="n is too large without sampling") as error:
        completion(n=3).options({})
    assert error.value.param == "n"


def test_several_prompts_are_a_list() -> None:
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3, "temperature": 1}, "n"),
        ({"model": 1}, "model"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"n": 5}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"logprobs": 6}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"top_k": 5}, "top_k"),
        ({"user": ["x"]}, "user"),
    ],
)
def test_an_impossible_completion_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        completion(**fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert error.value.body()["error"]["param"] == param


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"model": "m"}, {"prompt": "p"}])
def test_a_body_without_the_required_fields_is_refused(body: Any) -> None:
    with pytest.raises(RequestError):
        read_completion(body, LIMITS)


def test_neutral_values_of_unsupported_fields_are_accepted() -> None:
    completion(echo=False, suffix="", logit_bias={}, frequency_penalty=0, presence_penalty=0.0, best_of=1)


def test_more_alternatives_than_are_known_are_refused() -> None:
    assert completion(logprobs=1).options({}) == {"output_scores": True}
    for fields, defaults in (
        ({"logprobs": 2}, {}),
        ({"logprobs": 1, "temperature": 1}, {}),
        ({"logprobs": 1}, {"num_beams": 2}),
    ):
        with pytest.raises(RequestError) as error:
            completion(**fields).options(defaults)
        assert error.value.param == "logprobs"


def test_messages_become_lines_of_the_chat() -> None:
    request = chat(
        messages=[
            {"role": "user", "name": "Ann", "content": "who is in?"},
            {"role": "assistant", "content": "Bob: me"},
            {
                "role": "user",
                "name": "Ann",
                "content": [{"type": "text", "text": "go"}, {"type": "text", "text": "od"}],
            },
        ]
    )
    assert request.context({}) == "Ann: who is in?\nBob: me\nAnn: good"
    assert request.context({"context": 2}) == "Bob: me\nAnn: good"
    assert request.context({"characters": 10}) == "Ann: good"


def test_an_answer_may_be_sent_back_with_all_its_fields() -> None:
    from openai.types.chat import ChatCompletionMessage

    answer = ChatCompletionMessage(role="assistant", content="Bob: me", annotations=[]).model_dump()
    assert chat(messages=[*CHAT["messages"], answer]).context({}) == "Ann: hi\nBob: me"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages[0].name"),
        ({"messages": [{"role": "system", "content": "A: b"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "name": "A"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "name": "A", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "name": "A", "content": "x", "audio": {}}]}, "messages[0].audio"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
def test_an_impossible_chat_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        chat(**fields)
    assert (error.value.status, error.value.param) == (400, param)


def test_a_response_format_is_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    named = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    assert chat(response_format=named).options({}) == {"json_schema": schema}
    assert completion(response_format={"type": "json_object"}).options({}) == {"json_schema": {"type": "object"}}
    anything: Any = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    assert chat(response_format=anything).options({}) == {"json_schema": {}}
    assert completion(response_format={"type": "text"}).options({}) == {}


def test_top_logprobs_names_its_own_field() -> None:
    with pytest.raises(RequestError) as error:
        chat(logprobs=True, top_logprobs=3).options({})
    assert error.value.param == "top_logprobs"


def test_the_schema_names_every_field_and_its_range() -> None:
    schema = completion_fields(LIMITS).schema()
    assert schema["required"] == ["model", "prompt"]
    assert schema["properties"]["n"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 4,
        "description": "Answers to each prompt. Several require sampling.",
    }
