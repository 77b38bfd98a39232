"""OpenAI's own client against the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.lora_ft.serving.conftest import Running, serving, wait_for
from tests.lora_ft.serving.fake_engine import FakeEngine


def test_a_completion(server: Running) -> None:
    reply = server.client().completions.create(model="echo", prompt="abc")
    assert [choice.text for choice in reply.choices] == ["cba"]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 4, 9)
    assert reply.model == "echo"
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")


def test_several_prompts_and_answers_have_their_own_index(server: Running) -> None:
    reply = server.client().completions.create(model="echo", prompt=["ab", "xy"], n=2, temperature=1.0, seed=3)
    assert [(choice.index, choice.text) for choice in reply.choices] == [(0, "ba"), (1, "ba"), (2, "yx"), (3, "yx")]


def test_an_answer_that_the_limit_cuts(server: Running) -> None:
    reply = server.client().completions.create(model="echo", prompt="abcdef", max_tokens=3)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("fed", "length")


def test_a_stream_with_usage(server: Running) -> None:
    stream = server.client().completions.create(
        model="echo", prompt="abc", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "cba"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_an_answer(server: Running, engine: FakeEngine, stream: bool) -> None:
    reply = server.client().completions.create(model="echo", prompt="abcdef", stop=["dc", "zz"], stream=stream)
    chunks = list(reply) if stream else [reply]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == "fe"
    assert choices[-1].finish_reason == "stop"
    wait_for(lambda: not engine.running)


def test_log_probabilities_of_a_completion(server: Running) -> None:
    reply = server.client().completions.create(model="echo", prompt="ab", logprobs=1)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [1, 1, 1]
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 3


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_have_their_places_however_many_arrive_together(
    server: Running, engine: FakeEngine, stream: bool, together: bool
) -> None:
    engine.together = together
    reply = server.client().completions.create(model="echo", prompt="abc", logprobs=1, stream=stream)
    choices = [choice for chunk in (reply if stream else [reply]) for choice in chunk.choices]
    assert [place for choice in choices for place in choice.logprobs.text_offset] == [0, 1, 2, 3]


@pytest.mark.parametrize("together", [False, True])
def test_an_answer_ends_with_the_token_that_completes_a_stop_text(
    server: Running, engine: FakeEngine, together: bool
) -> None:
    engine.together = together
    reply = server.client().completions.create(model="echo", prompt="abcdef", stop=["edcb", "d"], logprobs=0)
    (choice,) = reply.choices
    assert (choice.text, choice.finish_reason) == ("fe", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3


def test_a_model_is_listed_and_described(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found"


def test_errors_are_openais(server: Running) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="echo", prompt="a", echo=True)
    assert (wrong.value.param, wrong.value.type) == ("echo", "invalid_request_error")
    assert wrong.value.request_id


def test_a_chat_continues_with_the_next_line(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "talk", template="{context}", chat={"context": 2, "characters": 100})
    with serving({"talk": engine}) as running:
        client = running.client()
        messages = [
            {"role": "user", "name": "Old", "content": "gone"},
            {"role": "user", "name": "Ann", "content": "ok"},
            {"role": "assistant", "content": "Bob: no"},
        ]
        reply = client.chat.completions.create(model="talk", messages=messages, logprobs=True)
        assert reply.choices[0].message.content == "Ann: ok\nBob: no"[::-1]
        assert reply.choices[0].logprobs is not None
        assert len(reply.choices[0].logprobs.content) == 16
        stream = list(
            client.chat.completions.create(
                model="talk", messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        assert stream[0].choices[0].delta.role == "assistant"
        text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
        assert text == "Ann: ok\nBob: no"[::-1]
        assert stream[-2].choices[0].finish_reason == "stop"
        assert stream[-1].usage.completion_tokens == 16


@pytest.mark.parametrize("message", [{"role": "user", "content": "A: b"}, {"role": "system", "content": "Be brief."}])
def test_only_chat_models_chat(server: Running, message: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="not trained on chats") as error:
        server.client().chat.completions.create(model="echo", messages=[message])
    assert error.value.param == "model"


def test_adapters_of_a_bank_are_models(tmp_path: Path) -> None:
    first = FakeEngine(tmp_path / "one", adapters={"mail": "m {text}", "same": "{text}"})
    two = FakeEngine(tmp_path / "two", adapters={"same": "{text}"})
    with serving({"one": first, "two": two}) as running:
        client = running.client()
        assert sorted(model.id for model in client.models.list()) == ["mail", "one", "one/same", "two", "two/same"]
        for name in ("mail", "one/mail", "two/same"):
            assert client.completions.create(model=name, prompt="ab").choices[0].text == "ba"
            assert client.models.retrieve(name).id
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="same", prompt="ab")
