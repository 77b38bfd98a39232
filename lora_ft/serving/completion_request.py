"""The request of POST /v1/completions: finished prompts in, one or more answers each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import Field, Fields, ListOf, Only, SingleOr, Text, Whole
from lora_ft.serving.limits import Limits
from lora_ft.serving.openai_options import alternatives, check_stream, options_of, shared_fields, stops_of


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request.

    Attributes:
        model: Name of the model, as sent.
        prompts: Finished prompts.
        stops: Texts that end an answer.
        stream: Send the answer piece by piece.
        usage: Send token counts at the end of the stream.
        scores: Return log-probabilities.
        top: Number of likeliest tokens beside each token.
        user: Name of the end user, or "".
        values: Fields as sent, for `options`.
    """

    model: str
    prompts: tuple[str, ...]
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    scores: bool
    top: int
    user: str
    values: Mapping[str, Any]

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generation options; see `options_of`."""
        options = options_of(self.values, defaults, scores=self.scores)
        alternatives(self.top, defaults, options, "logprobs")
        return options


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
    check_stream(values)
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
        model=values["model"],
        prompts=prompts,
        stops=stops_of(values),
        stream=values.get("stream", False),
        usage=values.get("stream_options", {}).get("include_usage", False),
        scores="logprobs" in values,
        top=values.get("logprobs", 0),
        user=values.get("user", ""),
        values=values,
    )
