"""Limits of one request and one connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one request and one connection. The defaults hold for a server of short texts.

    Attributes:
        body_bytes: Maximum size of a body, in bytes. A megabyte holds about 200,000 words.
        rows: Maximum rows of a request that run together: prompts times answers, or times beams.
        answers: Maximum answers to one prompt (`n`).
        prompt_tokens: Maximum prompt length, in tokens. A model reads as many as its task's source length.
        new_tokens: Maximum `max_tokens` of a request. The task's own limit may be higher.
        seconds: Deadline of a request, in seconds, waiting included.
        header_bytes: Maximum size of a request's head, in bytes.
        header_seconds: Time for a request's head to arrive, in seconds.
        body_seconds: Time for a request's body to arrive, in seconds.
        write_seconds: Time for a client to read what was sent, in seconds.
        connections: Maximum open connections of a process.
    """

    body_bytes: int = 1 << 20
    rows: int = 64
    answers: int = 16
    prompt_tokens: int = 8192
    new_tokens: int = 1024
    seconds: float = 120.0
    header_bytes: int = 1 << 15
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    write_seconds: float = 30.0
    connections: int = 1024
