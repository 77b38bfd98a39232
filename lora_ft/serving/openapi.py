"""The OpenAPI document. Requests come from the tables that the parsers use, so that both agree."""

from __future__ import annotations

from typing import Any

from lora_ft.serving.chat_request import chat_fields
from lora_ft.serving.completion_request import completion_fields
from lora_ft.serving.fields import Fields
from lora_ft.serving.limits import Limits
from lora_ft.serving.task_request import task_fields

_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_USAGE = {
    "type": "object",
    "properties": {"prompt_tokens": _WHOLE, "completion_tokens": _WHOLE, "total_tokens": _WHOLE},
}
_ERRORS = {
    "400": "A field is wrong, unknown or not supported; `param` names it.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model.",
    "408": "The body arrived too slowly.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "Too many requests are waiting; Retry-After tells when to try again.",
    "500": "The server failed unexpectedly.",
    "503": "The server is shutting down, or the model failed.",
    "504": "The deadline passed.",
}


def document(limits: Limits, *, keys: bool) -> dict[str, Any]:
    """Return the document.

    Args:
        limits: Limits of the server.
        keys: True if requests need an API key.
    """
    from lora_ft import __version__

    security: dict[str, Any] = {"security": [{"key": []}]} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lora-ft serve", "version": __version__},
        "paths": {
            "/v1/completions": {
                "post": _generates("Complete finished prompts.", completion_fields(limits), "Completion")
            },
            "/v1/chat/completions": {"post": _generates("Write the next line of a chat.", chat_fields(limits), "Chat")},
            "/v1/generate": {"post": _generates("Answer rows of the model's task.", task_fields(limits), "Generated")},
            "/v1/models": {"get": _reads("List the models.", "Models")},
            "/v1/models/{model}": {
                "get": {
                    **_reads("Describe a model.", "Model"),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
                }
            },
            "/health/live": {"get": _health("Tell if the process works.")},
            "/health/ready": {"get": _health("Tell if requests may be sent.")},
            "/metrics": {"get": _plain("Metrics for Prometheus.", "text/plain")},
            "/openapi.json": {"get": _plain("This document.", "application/json")},
            "/": {"get": _plain("A page to try the models.", "text/html")},
        },
        "components": {
            "schemas": _schemas(),
            "responses": {"Error": {"description": "Error.", "content": _json("Error")}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **security,
    }


def _generates(summary: str, fields: Fields, reply: str) -> dict[str, Any]:
    stream = {"schema": {"type": "string", "description": "Events `data: JSON`, and `data: [DONE]` at the end."}}
    return {
        "summary": summary,
        "parameters": [
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "schema": _NUMBER,
                "description": "Deadline in seconds, if sooner than the server's.",
            },
            {"name": "X-Request-Id", "in": "header", "schema": _TEXT, "description": "Id for the log and the answer."},
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": fields.schema()}}},
        "responses": {
            "200": {"description": "The answers.", "content": {**_json(reply), "text/event-stream": stream}},
            **{status: _error(about) for status, about in _ERRORS.items()},
        },
    }


def _reads(summary: str, schema: str) -> dict[str, Any]:
    errors = {status: _error(_ERRORS[status]) for status in ("401", "404")}
    return {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": _json(schema)}, **errors},
    }


def _health(summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object", "properties": {"status": _TEXT}}}}
    answers = {
        status: {"description": about, "content": content} for status, about in (("200", "Yes."), ("503", "No."))
    }
    return {"summary": summary, "security": [], "responses": answers}


def _plain(summary: str, kind: str) -> dict[str, Any]:
    answer = {"description": "The answer.", "content": {kind: {"schema": _TEXT if kind.startswith("text") else {}}}}
    return {"summary": summary, "security": [], "responses": {"200": answer}}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _error(about: str) -> dict[str, Any]:
    return {"description": about, "content": _json("Error")}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _schemas() -> dict[str, Any]:
    finish = {"enum": ["stop", "length"]}
    head = {"id": _TEXT, "object": _TEXT, "created": _WHOLE, "model": _TEXT}
    choice = {"index": _WHOLE, "finish_reason": finish, "logprobs": _or_null({"type": "object"})}
    message = _object(role={"const": "assistant"}, content=_TEXT)
    task = _object(
        columns=_list(_TEXT),
        labels=_list(_TEXT),
        chat={"type": "boolean"},
        source_length=_WHOLE,
        max_new_tokens=_or_null(_WHOLE),
        precision=_TEXT,
    )
    answer = _object(
        row=_WHOLE,
        answer=_WHOLE,
        text=_TEXT,
        tokens=_WHOLE,
        finish=finish,
        source_cut={"type": "boolean"},
        scores=_list(_NUMBER),
    )
    return {
        "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_TEXT)),
        "Model": _object(id=_TEXT, object=_TEXT, created=_WHOLE, owned_by=_TEXT, task=task),
        "Models": _object(object=_TEXT, data=_list({"$ref": "#/components/schemas/Model"})),
        "Completion": _object(**head, choices=_list(_object(**choice, text=_TEXT)), usage=_USAGE),
        "Chat": _object(**head, choices=_list(_object(**choice, message=message)), usage=_USAGE),
        "Generated": _object(
            **head,
            answers=_list(answer),
            label_scores=_list({"type": "object", "additionalProperties": _NUMBER}),
            usage=_USAGE,
        ),
    }
