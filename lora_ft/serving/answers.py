"""The answers to all rows of a request, merged into one stream of pieces."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.serving.errors import RequestError, as_request_error, option_quoted
from lora_ft.serving.registry import ServedModel
from lora_ft.serving.stop_sequences import StopSequences

if TYPE_CHECKING:
    from lora_ft.models.async_model import Generation
    from lora_ft.models.delta import Delta

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """New text of one answer.

    Attributes:
        row: Number of the row.
        answer: Number of the answer to this row.
        text: New text, without stop texts.
        tokens: New tokens.
        offsets: Place of each in the answer, in characters.
        scores: Their log-probabilities, or None.
        finish: Reason of the end in an answer's last piece, else None.
    """

    row: int
    answer: int
    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]
    scores: tuple[float, ...] | None
    finish: Finish | None


@dataclass(frozen=True)
class RowToAnswer:
    """One row for the model.

    Attributes:
        model: Model that answers.
        row: Text or columns.
        param: Path of the row in the request, for errors.
    """

    model: ServedModel
    row: str | dict[str, Any]
    param: str


class Answers:
    """Generations of one request. Iterate once; leaving the iteration cancels what is unfinished.

    Args:
        generations: Generation of each row.
        stops: Texts that end an answer.
        copies: Answers to each row.

    Attributes:
        prompt_tokens: Tokens of all prompts.
        source_cut: True for each row whose prompt was cut.
    """

    def __init__(self, generations: Sequence[Generation], stops: Sequence[str] = (), copies: int = 1) -> None:
        self._generations, self._stops, self._copies = list(generations), tuple(stops), copies
        self.prompt_tokens = sum(generation.prompt_tokens for generation in generations)
        self.source_cut = [generation.source_cut for generation in generations]

    def cancel(self) -> None:
        """Free all rows."""
        for generation in self._generations:
            generation.cancel()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield pieces of all answers in the order in which they arrive.

        Raises:
            LoraFtError: The engine failed.
        """
        try:
            async with contextlib.aclosing(self._merged()) as merged:
                stops: dict[tuple[int, int], StopSequences] = {}
                async for row, delta in merged:
                    key = row, delta.answer
                    if key not in stops:
                        stops[key] = StopSequences(self._stops)
                    if not stops[key].stopped:
                        yield _piece(row, delta, stops[key])
                    self._release(row, stops)
        finally:
            self.cancel()

    def _release(self, row: int, stops: Mapping[tuple[int, int], StopSequences]) -> None:
        """Cancel a row if stop texts have ended all its answers."""
        stopped = [state.stopped for (number, _), state in stops.items() if number == row]
        if self._stops and all(stopped) and len(stopped) == self._copies:
            self._generations[row].cancel()

    async def _merged(self) -> AsyncGenerator[tuple[int, Delta], None]:
        if len(self._generations) == 1:
            async for delta in self._generations[0]:
                yield 0, delta
            return
        arrived: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

        async def forward(row: int, generation: Generation) -> None:
            try:
                async for delta in generation:
                    arrived.put_nowait((row, delta))
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(forward(row, generation)) for row, generation in enumerate(self._generations)]
        try:
            running = len(tasks)
            while running:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()


def start(
    rows: Sequence[RowToAnswer],
    options: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    raw: bool,
    cuts: bool,
    stops: Sequence[str] = (),
    copies: int = 1,
) -> Answers:
    """Queue all rows of a request, or none.

    Args:
        rows: Rows.
        options: Generation options.
        names: Field of the request for each option, for errors.
        raw: The texts are finished prompts.
        cuts: Cut prompts that are longer than the source length, instead of refusing them.
        stops: Texts that end an answer.
        copies: Answers to each row.

    Raises:
        RequestError: A row does not fit, an option is wrong, a prompt is too long, or the queue is full (status 429).
    """
    generations: list[Generation] = []
    try:
        for row in rows:
            try:
                generation = row.model.engine.start(row.row, raw=raw, adapter=row.model.adapter, **options)
            except QueueFullError as error:
                raise queue_full(error) from error
            except UsageError as error:
                row.model.require_served()
                raise as_request_error(error, names, option_quoted(error, options) or row.param) from error
            except LoraFtError as error:  # the engine has failed or was closed
                raise engine_failure(error) from error
            generations.append(generation)
            if generation.source_cut and not cuts:
                raise prompt_too_long(row.param, row.model.settings.source_length)
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise
    return Answers(generations, stops, copies)


def queue_full(error: QueueFullError) -> RequestError:
    """Return the answer to a request for which there is no room (status 429)."""
    seconds = max(1, math.ceil(error.retry_after))
    return RequestError(
        "too many requests are waiting",
        f"retry in {seconds} s",
        status=429,
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def prompt_too_long(param: str, most: int) -> RequestError:
    """Return the error about a prompt that is longer than the model reads."""
    return RequestError(
        f"{param} is too long (at most {most:,} tokens)", "shorten it", param=param, code="context_length_exceeded"
    )


def engine_failure(error: LoraFtError) -> RequestError:
    """Return the answer to a request whose generation failed (status 503)."""
    return RequestError(
        "the model stopped before the answer was complete",
        "send the request again",
        status=503,
        code="model_failed",
        reason=str(error),
    )


def _piece(row: int, delta: Delta, stops: StopSequences) -> Piece:
    """Return a piece up to the token that completes a stop text.

    Tokens that are ready together arrive together, so how many follow the stop text depends on the load.
    """
    text, count = "", 0
    for part in _texts(delta):
        text += stops.feed(part)
        count += 1
        if stops.stopped:
            break
    finish: Finish | None = delta.finish
    if stops.stopped:
        finish = "stop"
    elif finish is not None:
        text += stops.finish()
    scores = None if delta.scores is None else delta.scores[:count]
    return Piece(row, delta.answer, text, delta.tokens[:count], delta.offsets[:count], scores, finish)


def _texts(delta: Delta) -> list[str]:
    """Return the text that each new token adds, or all text if there is no new token."""
    bounds = [offset - delta.offsets[0] for offset in delta.offsets[1:]]
    return [delta.text[start:end] for start, end in zip([0, *bounds], [*bounds, len(delta.text)], strict=True)]
