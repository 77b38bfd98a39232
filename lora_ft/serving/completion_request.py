"""The request of POST /v1/completions: finished prompts in, one or more answers each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import Field, Fields, ListOf, Only, SingleOr, Text, Whole
from lora_ft.serving.limits import Limits
from lora_ft.serving.openai_options import shared_fields
from lora_ft.serving.openai_request import OpenAIRequest, common_arguments


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(OpenAIRequest):
    """A checked request.

    Attributes:
        prompts: Finished prompts.
    """

    prompts: tuple[str, ...]
    top_field = "logprobs"


def completion_fields(limits: Limits) -> Fields:
    """Return the fields of the request."""
    return Fields(
        (
            *shared_fields(limits),
            Field(
                "prompt",
                SingleOr(ListOf(Text(), 1, limits.rows)),
                "Finished prompt, or a list of them. The model reads it unchanged; /v1/generate fills a task's prompt.",
                required=True,
            ),
            Field("logprobs", Whole(0, 5), "Return log-probabilities of tokens. 0 or, without sampling, 1."),
            Field("best_of", Whole(1, limits.answers), "Supported only if it equals n."),
            Field("echo", Only((False,)), "Not supported."),
            Field("suffix", Only(("",)), "Not supported."),
        ),
        unknown="remove it; POST /v1/generate takes every option of generation",
    )


def read_completion(body: Any, limits: Limits) -> CompletionRequest:
    """Return a checked request.

    Raises:
        RequestError: A field is unknown, missing, malformed or out of its limits.
    """
    values = completion_fields(limits).read(body)
    answers, best = values.get("n", 1), values.get("best_of")
    if best is not None and best != answers:
        raise RequestError(f"best_of is not n (got {best} and {answers})", "leave best_of out", param="best_of")
    prompts = tuple(values["prompt"])
    if len(prompts) * answers > limits.rows:
        raise RequestError(
            f"the request has too many answers (got {len(prompts)} prompts with {answers} each, at most {limits.rows})",
            "send several requests",
            param="n" if answers > 1 else "prompt",
        )
    return CompletionRequest(
        prompts=prompts,
        scores="logprobs" in values,
        top=values.get("logprobs", 0),
        **common_arguments(values),
    )
