"""What a scheduler has done since it began."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Totals of a scheduler since it began.

    Attributes:
        prompt_tokens, generated_tokens: Tokens of encoded sources, and of answers.
        steps, step_seconds: Steps of lanes, and their time.
        encoder_calls, encoder_seconds: Encoded sources, and their time.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    encoder_calls: int = 0
    encoder_seconds: float = 0.0
