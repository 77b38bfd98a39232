"""The reply of POST /v1/generate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from lora_ft.serving.answers import Answers, Piece
from lora_ft.serving.request_record import RequestRecord


class TaskReply:
    """The answers to all rows, whole or piece by piece.

    Args:
        identity: Id of the reply.
        model: Name of the model, as asked for.
        answers: The answers.
        record: Record of the request.
    """

    def __init__(self, identity: str, model: str, answers: Answers, record: RequestRecord) -> None:
        self._id, self._model, self._answers, self._record = identity, model, answers, record
        self._by_place: dict[tuple[int, int], dict[str, Any]] = {}

    async def whole(self) -> dict[str, Any]:
        """Return the complete reply."""
        async for piece in self._answers.pieces():
            self._add(piece)
        answers = [answer for _, answer in sorted(self._by_place.items())]
        self._record.answers = [answer["text"] for answer in answers]
        return {
            "id": self._id,
            "object": "generate",
            "created": int(time.time()),
            "model": self._model,
            "answers": answers,
            "usage": self._record.usage,
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the pieces, and then the token counts."""
        async for piece in self._answers.pieces():
            answer = self._add(piece)
            if piece.text or piece.tokens or piece.finish:
                chunk = {"row": piece.row, "answer": piece.answer, "text": piece.text, "tokens": len(piece.tokens)}
                if piece.scores is not None:
                    chunk["scores"] = list(piece.scores)
                yield {**chunk, "finish": piece.finish, "source_cut": answer["source_cut"]}
        self._record.answers = [answer["text"] for _, answer in sorted(self._by_place.items())]
        yield {"usage": self._record.usage}

    def _add(self, piece: Piece) -> dict[str, Any]:
        answer = self._by_place.setdefault(
            (piece.row, piece.answer),
            {
                "row": piece.row,
                "answer": piece.answer,
                "text": "",
                "tokens": 0,
                "finish": None,
                "source_cut": self._answers.source_cut[piece.row],
            },
        )
        answer["text"] += piece.text
        answer["tokens"] += len(piece.tokens)
        answer["finish"] = piece.finish or answer["finish"]
        if piece.scores is not None:
            answer.setdefault("scores", []).extend(piece.scores)
        self._record.count((piece.row, piece.answer), len(piece.tokens), piece.finish)
        return answer
