"""Pieces of an answer that grows: their texts, and the places of their tokens."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import numpy as np
import pytest

from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.models.delta import Delta, GrowingAnswer
from tests.tiny import tiny_tokenizer

END = 1


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("sizes", [(1,) * 10, (10,), (3, 7)], ids=str)
def test_tokens_have_their_places_in_pieces_of_any_size(tokenizer: Tokenizer, sizes: tuple[int, ...]) -> None:
    ((_, *ids),) = tokenizer.encode(["two words"])  # without the mark of the first word, which adds no text
    answer, tokens = GrowingAnswer(0, tokenizer, (END,)), np.array(ids)
    chunks = np.split(tokens, np.cumsum(sizes)[:-1])
    pieces = [answer.add(TokenChunk(0, chunk)) for chunk in chunks]
    whole = functools.reduce(operator.add, pieces)
    assert whole == Delta(0, "two words", tuple(ids), None, "stop", tuple(range(10)))
    assert "".join(piece.text for piece in pieces) == answer.whole == "two words"
