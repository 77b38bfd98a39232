"""A request at work, and what becomes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_ft.export.runtime.decoding import label_scores as label_scoring
from lora_ft.export.runtime.decoding import rows_of, strategy
from lora_ft.export.runtime.decoding.calls import Decoding, Likeliest, Logits, Next
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.inputs import Prompted

if TYPE_CHECKING:
    from lora_ft.export.runtime.pool import JobLane

StepCall = Next | Logits | Likeliest
ALLOWANCE = 0.001  # seconds a source token that a request may wait longer; alone, a row takes about as long in int8


@dataclass(eq=False)
class Job:
    """A request at work.

    Attributes:
        prompted: Tokens, options and adapter.
        decoding: The strategy.
        rows: Rows that it needs.
        arrived: Time of its arrival on the monotonic clock, in seconds.
        cancelled: Set to drop it at the next round.
        started: True once its prompt has been encoded.
        lane, slots: Where its rows are, in order, while it runs.
        call: The step that it waits for.
    """

    prompted: Prompted
    decoding: Decoding
    rows: int
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    started: bool = False
    lane: JobLane | None = None
    slots: list[int] = field(default_factory=list)
    call: StepCall = field(init=False)

    @classmethod
    def of(cls, generator: Generator, prompted: Prompted, *, label_scores: bool = False) -> Job:
        """Return the job of a request, or of scoring the labels of its task."""
        options = prompted.options
        search = label_scoring.search if label_scores else strategy(options, stream=True)
        rows = label_scoring.rows_of(options) if label_scores else rows_of(options)
        return cls(prompted, search([prompted.ids], options, generator.special), rows)

    @property
    def length(self) -> int:
        """Length of its prompt, in tokens."""
        return len(self.prompted.ids)

    @property
    def due(self) -> float:
        """Time by which its source should be encoded, in seconds on the monotonic clock.

        A long source delays many short ones, whose answers end early, so it is due later.
        """
        return self.arrived + ALLOWANCE * self.length

    @property
    def longest(self) -> int:
        """Decoder tokens that a row may need, with the start token."""
        return self.prompted.options.max_new_tokens + 1


@dataclass(frozen=True)
class Finished:
    """The end of a request's answers."""


@dataclass(frozen=True)
class Failed:
    """The failure of a request.

    Attributes:
        error: What it raised.
    """

    error: Exception


Event = TokenChunk | Finished | Failed
