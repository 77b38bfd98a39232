"""Answers in OpenAI's shapes, whole or piece by piece."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from lora_ft.serving.answers import Answers, Piece
from lora_ft.serving.request_record import RequestRecord

Tokens = Callable[[list[int]], list[bytes]]  # bytes of each token


@dataclass
class Choice:
    """One answer as it grows.

    Attributes:
        text: Text so far.
        tokens: Bytes of its tokens.
        scores: Their log-probabilities.
        offsets: Their places in the text, in characters.
        finish: Reason of the end.
    """

    text: str = ""
    tokens: list[bytes] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: str | None = None


@dataclass
class ReplyFormat:
    """Settings of a reply.

    Attributes:
        id: Id of the reply.
        model: Name of the model, as asked for.
        copies: Answers to each prompt.
        scores: Add log-probabilities.
        top: 1 to list the generated token as the likeliest, too.
        tokens: Returns the bytes of each token.
        usage: Add token counts to a stream.
    """

    id: str
    model: str
    copies: int
    scores: bool
    top: int
    tokens: Tokens
    usage: bool = False


class CompletionReply:
    """The reply of POST /v1/completions."""

    whole_object = chunk_object = "text_completion"

    def __init__(self, settings: ReplyFormat, answers: Answers, record: RequestRecord) -> None:
        self.settings, self._answers, self._record = settings, answers, record
        self._created = int(time.time())
        self._choices: dict[int, Choice] = {}

    async def whole(self) -> dict[str, Any]:
        """Return the complete reply."""
        async for piece in self._answers.pieces():
            self._add(piece)
        choices = [self._whole_choice(number, choice) for number, choice in sorted(self._choices.items())]
        self._record.answers = [choice.text for _, choice in sorted(self._choices.items())]
        return {**self._head(self.whole_object), "choices": choices, "usage": self._record.usage}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the reply piece by piece."""
        usage = {"usage": None} if self.settings.usage else {}
        async for piece in self._answers.pieces():
            number, first = self._add(piece)
            for choice in self._chunk_choices(number, piece, first):
                yield {**self._head(self.chunk_object), "choices": [choice], **usage}
        self._record.answers = [choice.text for _, choice in sorted(self._choices.items())]
        if self.settings.usage:
            yield {**self._head(self.chunk_object), "choices": [], "usage": self._record.usage}

    def _add(self, piece: Piece) -> tuple[int, bool]:
        """Append a piece to its choice, and return the choice's number and whether it is the first piece."""
        number = piece.row * self.settings.copies + piece.answer
        first = number not in self._choices
        choice = self._choices.setdefault(number, Choice())
        if piece.scores is not None:
            choice.tokens += self.settings.tokens(list(piece.tokens))
            choice.scores += piece.scores
            choice.offsets += piece.offsets
        choice.text += piece.text
        choice.finish = piece.finish or choice.finish
        self._record.count((piece.row, piece.answer), len(piece.tokens), piece.finish)
        return number, first

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.settings.id, "object": kind, "created": self._created, "model": self.settings.model}

    def _whole_choice(self, number: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": number,
            "text": choice.text,
            "logprobs": self._logprobs(choice, 0),
            "finish_reason": choice.finish,
        }

    def _chunk_choices(self, number: int, piece: Piece, first: bool) -> list[dict[str, Any]]:
        if not (piece.text or piece.finish or piece.scores):
            return []
        logprobs = self._logprobs(self._choices[number], len(piece.scores or ())) if piece.scores else None
        return [{"index": number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}]

    def _logprobs(self, choice: Choice, last: int) -> dict[str, Any] | None:
        """Return log-probabilities of the last tokens, or of all for 0."""
        if not self.settings.scores:
            return None
        tokens, scores = list(map(_text, choice.tokens[-last:])), choice.scores[-last:]
        top = [{token: score} for token, score in zip(tokens, scores, strict=True)] if self.settings.top else None
        return {"tokens": tokens, "token_logprobs": scores, "top_logprobs": top, "text_offset": choice.offsets[-last:]}


class ChatReply(CompletionReply):
    """The reply of POST /v1/chat/completions."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def _whole_choice(self, number: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": number,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice, 0),
            "finish_reason": choice.finish,
        }

    def _chunk_choices(self, number: int, piece: Piece, first: bool) -> list[dict[str, Any]]:
        chunks: list[dict[str, Any]] = []
        if first:
            chunks.append(_chat_chunk(number, {"role": "assistant", "content": ""}))
        if piece.text or piece.scores:
            logprobs = self._logprobs(self._choices[number], len(piece.scores)) if piece.scores else None
            chunks.append(_chat_chunk(number, {"content": piece.text}, logprobs))
        if piece.finish:
            chunks.append(_chat_chunk(number, {}, finish=piece.finish))
        return chunks

    def _logprobs(self, choice: Choice, last: int) -> dict[str, Any] | None:
        if not self.settings.scores:
            return None
        entries = []
        for token, score in zip(choice.tokens[-last:], choice.scores[-last:], strict=True):
            entry = {"token": _text(token), "logprob": score, "bytes": list(token)}
            entries.append({**entry, "top_logprobs": [entry] if self.settings.top else []})
        return {"content": entries, "refusal": None}


def _chat_chunk(
    number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text(token: bytes) -> str:
    r"""Return a token as text, with OpenAI's \xc3 for bytes of a character that has several tokens."""
    return token.decode("utf-8", "backslashreplace")
