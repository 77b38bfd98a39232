"""Answers in OpenAI's shapes, from pieces with given tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from lora_ft.models.byt5 import byte_tokenizer
from lora_ft.serving.answers import Answers, Piece
from lora_ft.serving.openai_replies import ChatReply, CompletionReply, ReplyFormat
from lora_ft.serving.request_record import RequestRecord

TEXT = "a é\n"
TOKENIZER = byte_tokenizer()


class FixedAnswers(Answers):
    """The answer TEXT, a byte in each token."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        (ids,) = TOKENIZER.encode([TEXT])
        yield Piece(0, 0, TEXT, tuple(ids), (0, 1, 2, 2, 3, 4), (-0.5,) * len(ids), "stop")


def whole(kind: type[CompletionReply]) -> Any:
    form = ReplyFormat("id", "model", copies=1, scores=True, top=1, tokens=TOKENIZER.spellings)
    reply = asyncio.run(kind(form, FixedAnswers([]), RequestRecord("id")).whole())
    return reply["choices"][0]["logprobs"]


def test_bytes_of_a_chats_tokens_add_up_to_its_text() -> None:
    entries = whole(ChatReply)["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == f"{TEXT}</s>"
    assert [entry["token"] for entry in entries] == ["a", " ", r"\xc3", r"\xa9", "\n", "</s>"]


@pytest.mark.parametrize("field", ["tokens", "token_logprobs", "top_logprobs", "text_offset"])
def test_lists_of_a_completion_have_an_entry_for_each_token(field: str) -> None:
    assert len(whole(CompletionReply)[field]) == 6
