"""The part of a request that completions and chat completions have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lora_ft.serving.errors import RequestError
from lora_ft.serving.openai_options import options_of


@dataclass(frozen=True, kw_only=True)
class OpenAIRequest:
    """A checked request.

    Attributes:
        model: Name of the model, as sent.
        stops: Texts that end an answer.
        stream: Send the answer piece by piece.
        usage: Send token counts at the end of the stream.
        scores: Return log-probabilities.
        top: Number of likeliest tokens beside each token.
        user: Name of the end user, or "".
        values: Fields as sent, for `options`.
        top_field: Name of the field that sets `top`.
    """

    model: str
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    scores: bool
    top: int
    user: str
    values: Mapping[str, Any]
    top_field: ClassVar[str]

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generation options; see `options_of`.

        Raises:
            RequestError: `options_of` raises it, or more likeliest tokens are asked for than are known. Only greedy
                search knows one: the generated token.
        """
        options = options_of(self.values, defaults, scores=self.scores)
        if self.top > 1 or (self.top == 1 and {**defaults, **options}.get("do_sample")):
            raise RequestError(
                f"{self.top_field} is too large (got {self.top}, at most 1, or 0 when sampling)",
                f"set {self.top_field} to 0: only the probabilities of generated tokens are known",
                param=self.top_field,
            )
        return options


def common_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a request that do not depend on its endpoint.

    Args:
        values: Fields of the request.

    Raises:
        RequestError: Stream options are sent without a stream, or a stop text is empty.
    """
    if "stream_options" in values and not values.get("stream"):
        raise RequestError("stream_options is sent without stream", "set stream to true", param="stream_options")
    stops = tuple(values.get("stop", ()))
    if "" in stops:
        raise RequestError("stop has an empty text", "remove it", param="stop")
    return {
        "model": values["model"],
        "stops": stops,
        "stream": values.get("stream", False),
        "usage": values.get("stream_options", {}).get("include_usage", False),
        "user": values.get("user", ""),
        "values": values,
    }
