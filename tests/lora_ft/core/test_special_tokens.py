"""Special tokens: read from a configuration, and the end of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens

ENDS = st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)


@given(ends=ENDS, tokens=st.lists(st.integers(0, 20)))
def test_trimming_keeps_tokens_up_to_the_first_end(ends: list[int], tokens: list[int]) -> None:
    trimmed = SpecialTokens(0, tuple(ends), 0).trim(np.array(tokens, np.int64)).tolist()
    assert trimmed == tokens[: len(trimmed)]
    assert not set(trimmed[:-1]) & set(ends)
    assert len(trimmed) == len(tokens) or trimmed[-1] in ends


@given(ends=ENDS, start=st.integers(0, 9), pad=st.integers(0, 9))
def test_configuration_is_read_back_unchanged(ends: list[int], start: int, pad: int) -> None:
    special = SpecialTokens(start, tuple(ends), pad)
    assert SpecialTokens.of(special.as_config(), 10, "here") == special


@pytest.mark.parametrize(
    ("config", "special"),
    [
        ({}, SpecialTokens(0, (1,), 0)),
        ({"pad_token_id": 1, "eos_token_id": 2}, SpecialTokens(1, (2,), 1)),
        ({"decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": [1, 5, 1]}, SpecialTokens(0, (1, 5), 1)),
        ({"decoder_start_token_id": 0, "eos_token_id": 0}, SpecialTokens(0, (0,), 0)),
        ({"eos_token_id": None}, SpecialTokens(0, (1,), 0)),
    ],
)
def test_missing_ids_are_those_of_t5(config: dict[str, Any], special: SpecialTokens) -> None:
    assert SpecialTokens.of(config, 10, "here") == special


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token_id": 10},
        {"eos_token_id": []},
        {"eos_token_id": "1"},
        {"eos_token_id": [1, -1]},
        {"pad_token_id": -1},
        {"pad_token_id": True},
        {"decoder_start_token_id": 2.0},
        {"decoder_start_token_id": [0]},
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"here: {next(iter(config))}"):
        SpecialTokens.of(config, 10, "here")


def test_end_of_the_tokenizer_comes_first() -> None:
    special = SpecialTokens(0, (5, 1), 0)
    assert special.closed_by(1).end == 1 and set(special.closed_by(1).ends) == {1, 5}
    assert special.closed_by(7) == special.closed_by(None) == special
