"""The OpenAPI document: complete, consistent, and in agreement with the parsers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lora_ft.serving.limits import Limits
from lora_ft.serving.openapi import document
from tests.lora_ft.serving.conftest import Running

DOCUMENT = document(Limits(), keys=True)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_has_a_target() -> None:
    for reference in set(references(DOCUMENT)):
        target = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_every_route_is_described(server: Running) -> None:
    served = server.get("/openapi.json").json()
    assert set(served["paths"]) == set(DOCUMENT["paths"])
    assert "security" not in served
    assert DOCUMENT["security"] == [{"key": []}]
    for path, methods in served["paths"].items():
        for method in methods:
            response = httpx.request(method, f"{server.url}{path.replace('{model}', 'echo')}")
            assert response.status_code in (200, 415), (path, method)


@pytest.mark.parametrize(
    ("path", "body", "valid"),
    [
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "stop": "x", "n": 2, "echo": False}, True),
        ("/v1/completions", {"model": "m", "prompt": "a", "echo": True}, False),
        ("/v1/completions", {"model": "m"}, False),
        ("/v1/completions", {"model": "m", "prompt": "a", "other": 1}, False),
        ("/v1/generate", {"model": "m", "rows": [{"a": 1}, "b"], "num_beams": 2, "early_stopping": "never"}, True),
        ("/v1/generate", {"model": "m", "rows": "a", "temperature": 0}, False),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "A: b"}]}, True),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "system", "content": "b"}]}, False),
    ],
)
def test_the_schema_accepts_what_the_parser_accepts(path: str, body: dict[str, Any], valid: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    validator = jsonschema.Draft202012Validator(content["schema"])
    assert validator.is_valid(body) is valid
    json.dumps(DOCUMENT)
