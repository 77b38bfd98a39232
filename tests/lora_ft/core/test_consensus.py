"""Consensus: the chosen answer has the highest mean utility, and utilities are ROUGE's on tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lora_ft.core.consensus import UTILITIES, chosen, utilities
from lora_ft.core.special_tokens import SpecialTokens

SPECIAL = SpecialTokens(0, (1,), 0)
TEXTS = st.lists(st.lists(st.integers(2, 9), max_size=12), min_size=1, max_size=6)


@given(texts=TEXTS, utility=st.sampled_from(sorted(UTILITIES)))
def test_the_choice_has_the_highest_mean_rouge(texts: list[list[int]], utility: str) -> None:
    scorer, words = RougeScorer([utility]), [" ".join(map(str, text)) for text in texts]
    expected = np.array([[scorer.score(left, right)[utility].fmeasure for right in words] for left in words])
    table = utilities(texts, utility)
    filled = [i for i, text in enumerate(texts) if text]  # rouge-score gives two empty texts 0
    assert np.allclose(table[np.ix_(filled, filled)], expected[np.ix_(filled, filled)])
    means = table.mean(axis=1)
    assert means[chosen([np.array([*text, 1]) for text in texts], utility, SPECIAL)] == means.max()


@pytest.mark.parametrize("utility", UTILITIES)
def test_the_first_of_equal_answers_is_chosen(utility: str) -> None:
    assert chosen([np.array([3, 4, 1])] * 3, utility, SPECIAL) == 0
    assert chosen([np.array([8, 1]), np.array([3, 4, 1]), np.array([3, 5, 1])], utility, SPECIAL) == 1
