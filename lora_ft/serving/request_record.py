"""The record of one request, from which its log line and the metrics are written."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from lora_ft.serving.errors import RequestError

_IDS = re.compile(r"[A-Za-z0-9._-]{1,128}")
CLIENT_GONE = 499  # the status that nginx logs for a client that closed the connection


@dataclass
class RequestRecord:
    """The facts about a request, for its log line and the metrics.

    Attributes:
        id: Request id, also a header of the answer.
        method, path: Of the request. The path is a route's, so that unknown paths do not fill the log.
        started: Time of arrival, of the monotonic clock, in seconds.
        status: HTTP status, or 0 before the answer begins.
        model: Name of the model, or "" before it is known.
        stream: True if the answer is sent piece by piece.
        rows: Number of rows.
        prompt_tokens: Tokens of all prompts.
        first_token: Seconds until the first token, or None.
        seconds: Seconds until the end of the answer.
        last_token: Seconds until the last token.
        lengths: Number of tokens of each answer, by row and answer.
        finishes: Number of answers by finish reason.
        code: Name of the error, or "".
        reason: Reason of a failure, for the log only.
        user: Name of the end user, as sent.
        prompts, answers: Texts, kept only if the log may show them.
    """

    id: str
    method: str = ""
    path: str = ""
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    model: str = ""
    stream: bool = False
    rows: int = 0
    prompt_tokens: int = 0
    first_token: float | None = None
    last_token: float = 0.0
    lengths: dict[tuple[int, int], int] = field(default_factory=dict)
    seconds: float = 0.0
    finishes: dict[str, int] = field(default_factory=dict)
    code: str = ""
    reason: str = ""
    user: str = ""
    prompts: list[Any] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def count(self, answer: tuple[int, int], tokens: int, finish: str | None) -> None:
        """Count new tokens of an answer, and the answer if it is finished."""
        if tokens:
            self.last_token = time.monotonic() - self.started
            if self.first_token is None:
                self.first_token = self.last_token
            self.lengths[answer] = self.lengths.get(answer, 0) + tokens
        if finish is not None:
            self.finishes[finish] = self.finishes.get(finish, 0) + 1

    def refuse(self, error: RequestError) -> None:
        """Note the error with which the request ends."""
        self.code, self.reason = error.code, error.reason

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self.started

    @property
    def new_tokens(self) -> int:
        """Number of generated tokens."""
        return sum(self.lengths.values())

    @property
    def usage(self) -> dict[str, int]:
        """Token counts in OpenAI's shape."""
        total = self.prompt_tokens + self.new_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.new_tokens, "total_tokens": total}

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time between two tokens of the longest answer, in seconds; None for answers of one token."""
        longest = max(self.lengths.values(), default=0)
        if self.first_token is None or longest < 2:
            return None
        return (self.last_token - self.first_token) / (longest - 1)


def request_id(sent: str | None) -> str:
    """Return the id that the client sent if it is well-formed, or a new one."""
    return sent if sent is not None and _IDS.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
