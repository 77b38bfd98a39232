"""ByT5's tokenizer.json returns the same tokens as transformers' tokenizer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from lora_ft.models.byt5 import byte_tokenizer

TOKENIZER, REFERENCE = byte_tokenizer(), ByT5Tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")))
def test_text_is_encoded_as_its_bytes_and_decoded_again(text: str) -> None:
    (ids,) = TOKENIZER.encode([text])
    assert ids == REFERENCE(text).input_ids == [*(byte + 3 for byte in text.encode()), 1]
    assert TOKENIZER.decode([ids]) == [text]


def test_sentinels_are_single_tokens() -> None:
    text = "a <extra_id_0> b<extra_id_124>"
    assert TOKENIZER.encode([text]) == [REFERENCE(text).input_ids]
