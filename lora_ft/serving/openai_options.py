"""OpenAI's sampling fields, and the generation options that they stand for.

OpenAI's models sample with temperature 1 unless told otherwise. A task has options of its own, which were measured, so
they hold until a field replaces them: temperature above 0, or top_p below 1, samples; temperature 0 does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ft.core.constraint import SCHEMA
from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import Choice, Field, Fields, Flag, ListOf, Number, Only, Schema, SingleOr, Text, Whole
from lora_ft.serving.limits import Limits

_SEEDS = 2**63 - 1
_NONE = "leave it out; POST /v1/generate has repetition_penalty and the other options of a task"
STREAM_OPTIONS = Fields(
    (
        Field("include_usage", Flag(), "Send the token counts in a last chunk without choices."),
        Field("include_obfuscation", Only((False,)), "Not supported."),
    )
)


class StreamOptions:
    """The object `stream_options`."""

    def schema(self) -> dict[str, Any]:
        return STREAM_OPTIONS.schema()

    def read(self, value: Any, path: str) -> dict[str, Any]:
        return STREAM_OPTIONS.read(value, path)


_NAMED_SCHEMA = Fields(
    (
        Field("name", Text(64), "Name of the schema."),
        Field("description", Text(), "What the schema is for."),
        Field("schema", Schema(), "The JSON schema.", required=True),
        Field("strict", Flag(), "Every answer follows the schema, whatever is sent."),
    )
)
_RESPONSE_FORMAT = Fields(
    (
        Field("type", Choice(("text", "json_object", "json_schema")), "Kind of the answers.", required=True),
        Field("json_schema", _NAMED_SCHEMA, "The schema, if type is json_schema."),
    )
)


class ResponseFormat:
    """The object `response_format`, read as a JSON schema, or as None for any text."""

    def schema(self) -> dict[str, Any]:
        return _RESPONSE_FORMAT.schema()

    def read(self, value: Any, path: str) -> dict[str, Any] | None:
        values = _RESPONSE_FORMAT.read(value, path)
        if (values["type"] == "json_schema") != ("json_schema" in values):
            raise RequestError(
                f"{path}.json_schema does not fit the type {values['type']}",
                "send it with type json_schema",
                param=f"{path}.json_schema",
            )
        if values["type"] == "json_object":
            return {"type": "object"}
        return values["json_schema"]["schema"] if values["type"] == "json_schema" else None


def shared_fields(limits: Limits) -> tuple[Field, ...]:
    """Return the fields that completions and chat completions have in common."""
    return (
        Field("model", Text(512), "Name of a bundle or of an adapter, from GET /v1/models.", required=True),
        Field(
            "max_tokens",
            Whole(1, limits.new_tokens),
            "Maximum answer length, in tokens. Default: the task's own limit.",
        ),
        Field("temperature", Number(0, 2), "Above 0 samples, 0 does not. Default: the task's own options."),
        Field("top_p", Number(0, 1), "Sample within this share of probability."),
        Field("seed", Whole(0, _SEEDS), "Seed of sampling. Default: a new one per request."),
        Field("n", Whole(1, limits.answers), "Answers to each prompt. Several require sampling."),
        Field("stop", SingleOr(ListOf(Text(256), 1, 4)), "Texts that end an answer. They are not part of it."),
        Field("stream", Flag(), "Send the answer piece by piece, as server-sent events."),
        Field("stream_options", StreamOptions(), "Options of a stream."),
        Field("response_format", ResponseFormat(), "JSON schema of the answers. Default: the task's own, if any."),
        Field("user", Text(256), "Name of an end user, for the server's log."),
        Field("frequency_penalty", Only((0,), _NONE), "Not supported."),
        Field("presence_penalty", Only((0,), _NONE), "Not supported."),
        Field("logit_bias", Only(({},), _NONE), "Not supported."),
    )


OPTION_OF = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "n": "num_return_sequences",
    "response_format": SCHEMA,
}
"""Option of generation for each field of OpenAI."""


def options_of(values: Mapping[str, Any], defaults: Mapping[str, Any], *, scores: bool) -> dict[str, Any]:
    """Return the generation options of a request, which take precedence over the task's.

    Args:
        values: Fields of the request.
        defaults: Options of the task.
        scores: Return the log-probability of every token.

    Raises:
        RequestError: n or logprobs is not possible with these options.
    """
    options: dict[str, Any] = {
        OPTION_OF[name]: values[name] for name in ("max_tokens", "max_completion_tokens", "seed") if name in values
    }
    temperature, top_p = values.get("temperature"), values.get("top_p")
    if temperature == 0 or top_p == 0:
        options["do_sample"] = False
    elif temperature is not None or (top_p is not None and top_p < 1):
        options |= {"do_sample": True, "num_beams": 1, "top_k": defaults.get("top_k") or 0}
        options |= {name: values[name] for name in ("temperature", "top_p") if name in values}
    if values.get("response_format") is not None:  # {} is a schema, too: any object or list
        options[SCHEMA] = values["response_format"]
    answers, settings = values.get("n", 1), {**defaults, **options}
    beams = settings.get("num_beams") or 1
    if answers > 1 and not settings.get("do_sample") and answers > beams:
        raise RequestError(
            f"n is too large without sampling (got {answers}, at most {beams})",
            "set temperature above 0, or leave n out",
            param="n",
        )
    if "n" in values:  # also 1, since the task may have more
        options["num_return_sequences"] = answers
    if answers > 1 and settings.get("mbr"):
        options["mbr"] = 0
    if scores and beams > 1 and not settings.get("do_sample"):
        raise RequestError(
            f"logprobs are not available from beam search (the task has num_beams {beams})",
            "set temperature above 0, or leave logprobs out",
            param="logprobs",
        )
    return options | ({"output_scores": True} if scores else {})
