"""Requests and replies of OpenAI's POST /v1/completions, as text or as a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_ft.bench.http_client import Response


@dataclass(frozen=True)
class Request:
    """A request of the benchmark.

    Attributes:
        model: Name of the model or adapter.
        prompt: Finished prompt.
        max_tokens: Maximum answer length, in tokens; 0 for the server's default.
    """

    model: str
    prompt: str
    max_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """A reply. Times are in seconds.

    Attributes:
        status: HTTP status; 0 if the connection failed, the time was over, or the stream ended with an error.
        first, last: Times of the first and the last text, after the request was due.
        end: Time of the end, after the request was due.
        tokens: Number of tokens, by the server's count if it states one, else that of the pieces.
        text: Answer, or the server's message of an error.
        late: Time by which the request was sent too late.
    """

    status: int
    first: float
    last: float
    end: float
    tokens: int
    text: str
    late: float


def body_of(request: Request, *, stream: bool) -> bytes:
    """Return the JSON of a request, with greedy decoding."""
    values: dict[str, Any] = {"model": request.model, "prompt": request.prompt, "temperature": 0}
    if request.max_tokens:
        values["max_tokens"] = request.max_tokens
    if stream:
        values |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(values).encode()


def read_reply(response: Response, due: float, sent: float) -> Reply:
    """Return the content of a response.

    Args:
        response: Complete response, with times on the loop's clock.
        due, sent: Times at which the request was due and sent, on the same clock.
    """
    status, pieces = response.status, []
    try:
        pieces = list(_pieces(response)) if status == 200 else [(response.end, _message(response.body), 0)]
    except ValueError as error:  # a stream that ends with an error, or no completion at all
        status, pieces = 0, [(response.end, str(error), 0)]
    texts = [(time, text) for time, text, _ in pieces if text]
    tokens = max((count for _, _, count in pieces), default=0) or len(texts)
    times = [time for time, _ in texts] or [response.end]
    return Reply(
        status,
        times[0] - due,
        times[-1] - due,
        response.end - due,
        tokens,
        "".join(text for _, text in texts),
        sent - due,
    )


def _pieces(response: Response) -> Iterator[tuple[float, str, int]]:
    """Yield time, text and the number of tokens (0 if it is not stated) of each piece of an answer.

    Raises:
        ValueError: A piece is no completion.
    """
    if "event-stream" not in response.headers.get("content-type", ""):
        yield (response.end, *_content(response.body))
        return
    buffer = b""
    for time, piece in response.pieces:
        *events, buffer = (buffer + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
            if data and data != b"[DONE]":
                yield (time, *_content(data))


def _content(data: bytes) -> tuple[str, int]:
    """Return text and number of tokens of a completion or of a chunk of it."""
    content = json.loads(data)
    if not isinstance(content, dict) or "choices" not in content:
        raise ValueError(_message(data))
    text = "".join(choice.get("text") or "" for choice in content["choices"])
    return text, int((content.get("usage") or {}).get("completion_tokens") or 0)


def _message(body: bytes) -> str:
    """Return the message of an error in OpenAI's form, else the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
