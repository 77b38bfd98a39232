"""ByT5's tokenizer as a file says what transformers' own says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from lora_ft.models.byt5 import byte_tokenizer

MADE, ORACLE = byte_tokenizer(), ByT5Tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")))
def test_text_becomes_its_bytes_and_comes_back(text: str) -> None:
    (ids,) = MADE.encode([text])
    assert ids == ORACLE(text).input_ids == [*(byte + 3 for byte in text.encode()), 1]
    assert MADE.decode([ids]) == [text]


def test_sentinels_are_tokens_of_their_own() -> None:
    text = "a <extra_id_0> b<extra_id_124>"
    assert MADE.encode([text]) == [ORACLE(text).input_ids]
