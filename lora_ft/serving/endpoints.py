"""The endpoints that generate: OpenAI's completions and chat completions, and rows of a task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.serving import answers as rows_at_work
from lora_ft.serving.answers import Answers, RowToAnswer
from lora_ft.serving.bank_watch import BankWatch
from lora_ft.serving.body import read_json
from lora_ft.serving.chat_request import ChatRequest, read_chat
from lora_ft.serving.completion_request import read_completion
from lora_ft.serving.errors import RequestError, as_request_error
from lora_ft.serving.event_stream import EventStream
from lora_ft.serving.limits import Limits
from lora_ft.serving.openai_options import OPTION_OF
from lora_ft.serving.openai_replies import ChatReply, CompletionReply, ReplyFormat
from lora_ft.serving.openai_request import OpenAIRequest
from lora_ft.serving.registry import ServedModel
from lora_ft.serving.request_record import RequestRecord
from lora_ft.serving.task_replies import TaskReply
from lora_ft.serving.task_request import OPTIONS, TaskRequest, check_room, read_task_request
from lora_ft.serving.waiting import unless_gone

TIMEOUT_HEADER = "x-request-timeout"


class Endpoints:
    """Handlers of the endpoints that generate.

    Args:
        models: Models, with the adapters of now.
        limits: Limits of a request.
    """

    def __init__(self, models: BankWatch, limits: Limits) -> None:
        self._models, self._limits = models, limits

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        parsed = read_completion(await self._body(request), self._limits)
        several = len(parsed.prompts) > 1
        rows = [(prompt, f"prompt[{i}]" if several else "prompt") for i, prompt in enumerate(parsed.prompts)]
        return await self._openai(request, parsed, await self._models.find(parsed.model), rows)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self._body(request)
        try:
            parsed = read_chat(body, self._limits)
        except RequestError as error:  # messages without a speaker are usual, and a speaker would not help
            if (error.param or "").startswith("messages") and isinstance(body.get("model"), str):
                _chat_of(await self._models.find(body["model"]))
            raise
        model = await self._models.find(parsed.model)
        return await self._openai(request, parsed, model, [(parsed.context(_chat_of(model)), "messages")])

    async def generate(self, request: Request) -> Response:
        """POST /v1/generate."""
        parsed = read_task_request(await self._body(request), self._limits)
        record, deadline = (
            self._describe(request, parsed.model, parsed.stream, parsed.user, parsed.rows),
            self._deadline(request),
        )
        model = await self._models.find(parsed.model)
        single = len(parsed.rows) == 1
        rows = [
            RowToAnswer(await self._models.adapter_of(model, row), row, "rows" if single else f"rows[{i}]")
            for i, row in enumerate(parsed.rows)
        ]
        for row in rows:
            check_room(len(rows), parsed.options, row.model.settings.defaults, self._limits, "rows")
        await self._check_lengths(rows, raw=parsed.raw, cuts=True)
        answers = rows_at_work.start(
            rows, parsed.options, {name: name for name in (*OPTIONS, "labels")}, raw=parsed.raw, cuts=True
        )
        record.prompt_tokens = answers.prompt_tokens
        reply = TaskReply(f"gen-{record.id}", parsed.model, answers, record)
        if parsed.stream:
            return EventStream(reply.chunks(), answers.cancel, record, deadline)
        work = _with_label_scores(reply, rows, parsed) if parsed.label_scores else reply.whole()
        return await _finished(request, work, answers, deadline)

    async def _openai(
        self,
        request: Request,
        parsed: OpenAIRequest,
        model: ServedModel,
        texts: Sequence[tuple[str, str]],
    ) -> Response:
        """Answer texts in OpenAI's shape; each text comes with its path in the request."""
        is_chat, deadline = isinstance(parsed, ChatRequest), self._deadline(request)
        record = self._describe(request, parsed.model, parsed.stream, parsed.user, [text for text, _ in texts])
        settings = model.settings
        options = parsed.options(settings.defaults)
        check_room(len(texts), {}, {**settings.defaults, **options}, self._limits, texts[0][1].partition("[")[0])
        copies = options.get("num_return_sequences") or settings.defaults.get("num_return_sequences") or 1
        rows = [RowToAnswer(model, text, param) for text, param in texts]
        raw = not is_chat
        await self._check_lengths(rows, raw=raw, cuts=False)
        names = {option: field for field, option in OPTION_OF.items() if field in parsed.values}
        answers = rows_at_work.start(rows, options, names, raw=raw, cuts=False, stops=parsed.stops, copies=copies)
        record.prompt_tokens = answers.prompt_tokens
        kind = ChatReply if is_chat else CompletionReply
        form = ReplyFormat(
            f"{'chatcmpl' if is_chat else 'cmpl'}-{record.id}",
            parsed.model,
            copies,
            parsed.scores,
            parsed.top,
            settings.tokenizer.spellings,
            parsed.usage,
        )
        reply = kind(form, answers, record)
        if parsed.stream:
            return EventStream(reply.chunks(), answers.cancel, record, deadline)
        return await _finished(request, reply.whole(), answers, deadline)

    async def _body(self, request: Request) -> Any:
        return await read_json(request.headers, request.receive, self._limits)

    def _describe(self, request: Request, model: str, stream: bool, user: str, rows: Sequence[Any]) -> RequestRecord:
        record: RequestRecord = request.state.record
        record.model, record.stream, record.user = model, stream, user
        record.rows, record.prompts = len(rows), list(rows)
        return record

    def _deadline(self, request: Request) -> float:
        """Return the deadline, of the monotonic clock: the server's limit or the request's header, if sooner.

        Raises:
            RequestError: The header is not a positive number.
        """
        sent = request.headers.get(TIMEOUT_HEADER)
        seconds = self._limits.seconds
        if sent is not None:
            try:
                wished = float(sent)
            except ValueError:
                wished = math.nan
            if not 0 < wished < math.inf:
                raise RequestError(
                    f"the header {TIMEOUT_HEADER} is not a number of seconds (got {sent[:40]!r})",
                    "send a positive number",
                    param=TIMEOUT_HEADER,
                )
            seconds = min(seconds, wished)
        started: float = request.state.record.started
        return started + seconds

    async def _check_lengths(self, rows: Sequence[RowToAnswer], *, raw: bool, cuts: bool) -> None:
        """Raise RequestError if a prompt is longer than the limit.

        Only texts with more characters than the limit has tokens are counted, in another thread: a megabyte takes the
        tokenizer a second, in which streams of others would stand still.
        """
        for row in rows:
            limit = self._limits.prompt_tokens
            if _characters(row.row) <= limit:
                continue
            tokens = await asyncio.to_thread(_count_tokens, row, raw)
            most = limit if cuts else min(limit, row.model.settings.source_length)
            if tokens > most:
                raise rows_at_work.prompt_too_long(row.param, most)


def _chat_of(model: ServedModel) -> Mapping[str, Any]:
    """Return the settings of a chat task; raise RequestError if the model has another task."""
    chat = model.settings.chat
    if chat is None:
        raise RequestError(
            f"{model.name} was not trained on chats",
            "use POST /v1/generate or /v1/completions",
            param="model",
            code="unsupported_model",
        )
    return chat


def _characters(row: str | dict[str, Any]) -> int:
    return len(row) if isinstance(row, str) else sum(len(text) for text in row.values() if isinstance(text, str))


def _count_tokens(row: RowToAnswer, raw: bool) -> int:
    engine, settings = row.model.engine, row.model.settings
    model = engine.model if row.model.adapter is None else engine.model.with_adapter(row.model.adapter)
    try:
        (prompt,) = model.prompts([row.row], raw=raw)
    except UsageError as error:
        raise as_request_error(error, {}, row.param) from error
    return len(settings.tokenizer.encode([prompt])[0])


async def _finished(request: Request, work: Any, answers: Answers, deadline: float) -> Response:
    """Return the complete reply; nobody waits longer than the deadline, or for a client that has gone away."""
    try:
        return JSONResponse(await unless_gone(work, request.receive, deadline))
    except RequestError:
        raise
    except LoraFtError as error:
        raise rows_at_work.engine_failure(error) from error
    finally:
        answers.cancel()


async def _with_label_scores(reply: TaskReply, rows: Sequence[RowToAnswer], parsed: TaskRequest) -> Mapping[str, Any]:
    """Return the complete reply with the probability of every label of each row."""

    async def scores(row: RowToAnswer) -> dict[str, float]:
        try:
            return await row.model.engine.label_scores(
                row.row, raw=parsed.raw, adapter=row.model.adapter, labels=parsed.options.get("labels", ())
            )
        except QueueFullError as error:
            raise rows_at_work.queue_full(error) from error
        except UsageError as error:
            raise as_request_error(error, {}, "label_scores") from error

    labels = await asyncio.gather(*map(scores, rows), return_exceptions=True)
    for error in labels:
        if isinstance(error, BaseException):
            raise error
    return {**await reply.whole(), "label_scores": labels}
