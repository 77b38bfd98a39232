"""OpenAI's sampling fields, and the generation options that they stand for.

OpenAI's models sample with temperature 1 unless told otherwise. A task has options of its own, which were measured, so
they hold until a field replaces them: temperature above 0, or top_p below 1, samples; temperature 0 does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import Field, Fields, Flag, ListOf, Number, Only, SingleOr, Text, Whole
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
    answers, settings = values.get("n", 1), {**defaults, **options}
    beams = settings.get("num_beams") or 1
    if answers > 1 and not settings.get("do_sample") and answers > beams:
        raise RequestError(
            f"n is too large without sampling (got {answers}, at most {beams})",
            "set temperature above 0, or leave n out",
            param="n",
        )
    if answers > 1:
        options["num_return_sequences"] = answers
    if scores and beams > 1 and not settings.get("do_sample"):
        raise RequestError(
            f"logprobs are not available from beam search (the task has num_beams {beams})",
            "set temperature above 0, or leave logprobs out",
            param="logprobs",
        )
    return options | ({"output_scores": True} if scores else {})
