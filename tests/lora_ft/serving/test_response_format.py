"""OpenAI's client asks for answers of a schema: `response_format` of a real bundle with the codec `json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from lora_ft.export.runtime import Generator
from lora_ft.models.async_model import AsyncModel
from tests.export.oracle import make_bundle, redraw
from tests.lora_ft.serving.conftest import Running, serving
from tests.tiny import JSON_MARKS, save_tiny_t5, tiny_tokenizer

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "size": {"enum": ["S", "M", "L"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "order", "strict": True, "schema": SCHEMA}}
MESSAGES: Any = [{"role": "user", "name": "Ann", "content": "two of the large ones"}]


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A chat model of random weights, which writes no JSON of its own accord."""
    folder = tmp_path_factory.mktemp("orders")
    checkpoint = redraw(save_tiny_t5(folder / "checkpoint"), seed=4)
    tiny_tokenizer(JSON_MARKS).save(str(checkpoint / "tokenizer.json"))
    chat = {"context": 2, "characters": 100}
    make_bundle(
        checkpoint,
        folder / "orders",
        codec="json",
        template="{context}",
        chat=chat,
        generation={"max_new_tokens": 90},
    )
    with serving({"orders": AsyncModel(Generator.load(folder / "orders", threads=1))}) as running:
        yield running


def text_of(reply: Any, *, chat: bool) -> str:
    """Return the text of an answer, or of all its chunks."""
    chunks = reply if isinstance(reply, openai.Stream) else [reply]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    if not chat:
        return "".join(choice.text for choice in choices)
    parts = [choice.delta if hasattr(choice, "delta") else choice.message for choice in choices]
    return "".join(part.content or "" for part in parts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_chat_follows_the_schema(orders: Running, stream: bool, temperature: float) -> None:
    reply = orders.client().chat.completions.create(
        model="orders", messages=MESSAGES, response_format=FORMAT, stream=stream, temperature=temperature, seed=1
    )
    jsonschema.validate(json.loads(text_of(reply, chat=True)), SCHEMA)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_follows_the_schema(orders: Running, stream: bool) -> None:
    reply = orders.client().completions.create(
        model="orders", prompt="two of the large ones", stream=stream, extra_body={"response_format": FORMAT}
    )
    jsonschema.validate(json.loads(text_of(reply, chat=False)), SCHEMA)


def test_the_answer_is_parsed_by_the_client(orders: Running) -> None:
    import pydantic

    class Order(pydantic.BaseModel):
        """The client makes the schema of this class."""

        model_config = pydantic.ConfigDict(extra="forbid")
        size: str = pydantic.Field(pattern="^[SML]$")

    reply = orders.client().chat.completions.parse(model="orders", messages=MESSAGES, response_format=Order)
    parsed = reply.choices[0].message.parsed
    assert parsed is not None and parsed.size in {"S", "M", "L"}


def test_without_a_schema_the_model_writes_no_json(orders: Running) -> None:
    reply = orders.client().chat.completions.create(model="orders", messages=MESSAGES)
    assert not text_of(reply, chat=True).startswith("{")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"type": "string", "pattern": "("}, {"$ref": "#/missing"}, {"not": {"type": "string"}}],
    ids=str,
)
def test_a_schema_that_cannot_be_followed_is_a_bad_request(
    orders: Running, schema: dict[str, Any], stream: bool
) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as error:
        orders.client().chat.completions.create(model="orders", messages=MESSAGES, response_format=bad, stream=stream)
    assert (error.value.param, error.value.type) == ("response_format", "invalid_request_error")
    assert error.value.message
