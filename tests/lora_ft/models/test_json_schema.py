"""Answers under a JSON schema: valid whatever the weights, and the same tokens from PyTorch and from a bundle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from lora_ft.core.codecs import codec_named
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime import Generator
from lora_ft.models.async_model import AsyncModel
from lora_ft.models.backends import Backend, OnnxBackend, TorchBackend
from tests.export.oracle import TEXTS, make_bundle, redraw, torch_model
from tests.tiny import JSON_MARKS, save_tiny_t5, tiny_tokenizer

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["a", "b c", "12", None]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 3},
    "penalty": {"repetition_penalty": 1.5},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "seed": 3, "top_k": 0, "temperature": 3.0},
    "several samples": {"do_sample": True, "seed": 4, "top_k": 5, "top_p": 0.9, "num_return_sequences": 3},
}


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    folder = tmp_path_factory.mktemp("json")
    checkpoint = redraw(save_tiny_t5(folder / "checkpoint"), seed=4)
    tiny_tokenizer(JSON_MARKS).save(str(checkpoint / "tokenizer.json"))
    make_bundle(checkpoint, folder / "bundle", codec="json", generation={"max_new_tokens": 90, "json_schema": SCHEMA})
    tokenizer = Tokenizer(checkpoint / "tokenizer.json", codec_named("json"))
    return {
        "torch": TorchBackend(torch_model(checkpoint), tokenizer, 48),
        "bundle": OnnxBackend(Generator.load(folder / "bundle", threads=1)),
    }


def is_valid(text: str) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text)))


def answers(backend: Backend, options: dict[str, Any], batch_size: int = 4) -> list[str]:
    merged = {"max_new_tokens": 90, "json_schema": SCHEMA} | options
    if isinstance(backend, TorchBackend) and options.get("num_return_sequences"):
        pytest.skip("PyTorch returns one answer to a row")
    return [answer.text for answer in backend.generate(TEXTS, merged, batch_size=batch_size)]


@pytest.mark.parametrize("way", [*WAYS, *SAMPLED])
@pytest.mark.parametrize("name", ["torch", "bundle"])
def test_every_answer_is_valid(backends: dict[str, Backend], name: str, way: str) -> None:
    texts = answers(backends[name], (WAYS | SAMPLED)[way])
    assert texts and all(map(is_valid, texts)), texts
    assert len(set(texts)) > 1


@pytest.mark.parametrize("way", ["greedy", "beams", "penalty"])
def test_torch_and_the_bundle_give_the_same(backends: dict[str, Backend], way: str) -> None:
    assert answers(backends["torch"], WAYS[way]) == answers(backends["bundle"], WAYS[way])


@pytest.mark.parametrize("way", ["greedy", "beams"])
@pytest.mark.parametrize("name", ["torch", "bundle"])
def test_batches_change_nothing(backends: dict[str, Backend], name: str, way: str) -> None:
    assert answers(backends[name], WAYS[way], 1) == answers(backends[name], WAYS[way], 4)


def test_a_bundle_has_the_schema_of_its_task(backends: dict[str, Backend]) -> None:
    bundle = backends["bundle"]
    assert isinstance(bundle, OnnxBackend)
    assert bundle.generator.generate(TEXTS) == answers(bundle, {})
    free = bundle.generator.generate(TEXTS, json_schema=False)
    assert not any(text.startswith("{") for text in free)
    assert "".join(bundle.generator.stream(TEXTS[0])) == answers(bundle, {})[0]


def test_an_answer_at_the_limit_is_cut(backends: dict[str, Backend]) -> None:
    for backend in backends.values():
        (answer,) = backend.generate([TEXTS[0]], {"max_new_tokens": 5, "json_schema": SCHEMA})
        assert answer.cut and answer.tokens == 5 and answer.text.startswith("«")


def test_requests_with_other_schemas_share_steps(backends: dict[str, Backend]) -> None:
    bundle = backends["bundle"]
    assert isinstance(bundle, OnnxBackend)
    other = {"type": "array", "items": {"enum": ["x", 1]}, "minItems": 2, "maxItems": 2}
    schemas = [SCHEMA, other, False, SCHEMA, other, SCHEMA]
    alone = [
        bundle.generate([text], {"max_new_tokens": 90, "json_schema": schema})[0].text
        for text, schema in zip(TEXTS, schemas, strict=True)
    ]

    async def together() -> list[str]:
        model = AsyncModel(bundle.generator)
        pairs = zip(TEXTS, schemas, strict=True)
        try:
            work = [model.generate(text, raw=True, json_schema=schema) for text, schema in pairs]
            return [texts[0] for texts in await asyncio.gather(*work)]
        finally:
            await model.close()

    assert asyncio.run(together()) == alone
