"""The request of POST /v1/chat/completions: messages become the lines of a group chat, and the model writes the next.

A chat run was trained on `Name: text` lines. A message's `name` is the speaker. Without it, the content must be such a
line itself, as the model's own answers are: a client that sends an answer back as an assistant message needs no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.data.chats.lines import Line, context_of, parse_line
from lora_ft.serving.errors import RequestError
from lora_ft.serving.fields import Choice, Field, Fields, Flag, ListOf, Only, Text, Whole
from lora_ft.serving.limits import Limits
from lora_ft.serving.openai_options import shared_fields
from lora_ft.serving.openai_request import OpenAIRequest, common_arguments

_MESSAGES = 1000  # messages of a request; a task's context has about ten
CONTEXT, CHARACTERS = 10, 1500  # for a chat task that sets neither
_TEXT_PART = Fields(
    (
        Field("type", Choice(("text",)), "Kind of the part; only text is supported.", required=True),
        Field("text", Text(), "Text of the part.", required=True),
    )
)


class Content:
    """Content of a message: a text, or a list of parts of type text."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART.schema()}]}

    def read(self, value: Any, path: str) -> str:
        if not isinstance(value, list):
            return Text().read(value, path)
        return "".join(_TEXT_PART.read(part, f"{path}[{i}]")["text"] for i, part in enumerate(value))


MESSAGE = Fields(
    (
        Field("role", Choice(("user", "assistant")), "Role of the speaker; a group chat has no system.", required=True),
        Field("content", Content(), "Text, or a `Name: text` line if there is no name.", required=True),
        Field("name", Text(64), "Speaker."),
        Field("refusal", Only(()), "Not supported."),
        Field("tool_calls", Only(([],)), "Not supported."),
        Field("annotations", Only(([],)), "Not supported."),
    )
)


class MessageKind:
    """One message."""

    def schema(self) -> dict[str, Any]:
        return MESSAGE.schema()

    def read(self, value: Any, path: str) -> Line:
        message = MESSAGE.read(value, path)
        content, name = message["content"].strip(), message.get("name", "").strip()
        if not content:
            raise RequestError(f"{path}.content is empty", "remove the message", param=f"{path}.content")
        if "\n" in name:
            raise RequestError(f"{path}.name has several lines", "give a name", param=f"{path}.name")
        if name:
            return Line(name, content)
        line = parse_line(content)
        if line is None:
            raise RequestError(
                f"{path} has no speaker", "set its name, or write the content as `Name: text`", param=f"{path}.name"
            )
        return line


@dataclass(frozen=True, kw_only=True)
class ChatRequest(OpenAIRequest):
    """A checked request.

    Attributes:
        lines: Lines of the chat, oldest first.
    """

    lines: tuple[Line, ...]
    top_field = "top_logprobs"

    def context(self, chat: Mapping[str, Any]) -> str:
        """Return the text for the task's prompt.

        Args:
            chat: Settings of the chat task. Only its last `context` lines are read, up to `characters` characters.
        """
        lines = self.lines[-chat.get("context", CONTEXT) :]
        return context_of(lines, chat.get("characters", CHARACTERS))


def chat_fields(limits: Limits) -> Fields:
    """Return the fields of the request."""
    return Fields(
        (
            *shared_fields(limits),
            Field(
                "messages",
                ListOf(MessageKind(), 1, _MESSAGES),
                "Messages of the chat, oldest first. The model reads as many of the last as its task did.",
                required=True,
            ),
            Field("max_completion_tokens", Whole(1, limits.new_tokens), "The same as max_tokens."),
            Field("logprobs", Flag(), "Return the log-probability of every token."),
            Field("top_logprobs", Whole(0, 20), "Likeliest tokens beside each token. 0 or, without sampling, 1."),
            Field("tools", Only(([],)), "Not supported."),
            Field("tool_choice", Only(("none", "auto")), "Not supported."),
            Field("store", Only((False,)), "Not supported."),
            Field("modalities", Only((["text"],)), "Not supported."),
        ),
        unknown="remove it; POST /v1/generate takes every option of generation",
    )


def read_chat(body: Any, limits: Limits) -> ChatRequest:
    """Return a checked request.

    Raises:
        RequestError: A field is unknown, missing, malformed or out of its limits, or a message has no speaker.
    """
    values = chat_fields(limits).read(body)
    if "max_tokens" in values and "max_completion_tokens" in values:
        raise RequestError("max_tokens and max_completion_tokens are both set", "leave one out", param="max_tokens")
    if values.get("top_logprobs") is not None and not values.get("logprobs"):
        raise RequestError("top_logprobs is sent without logprobs", "set logprobs to true", param="top_logprobs")
    if values.get("n", 1) > limits.rows:
        raise RequestError(f"n is too large (got {values['n']}, at most {limits.rows})", "lower it", param="n")
    return ChatRequest(
        lines=tuple(values["messages"]),
        scores=values.get("logprobs", False),
        top=values.get("top_logprobs", 0),
        **common_arguments(values),
    )
