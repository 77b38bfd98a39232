"""Coverage, density and novel n-grams, by the definitions of Grusky et al. and See et al."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.evaluation.metrics import measure
from lora_ft.evaluation.metrics.extractiveness import fragments, novel
from lora_ft.tasks.evaluate import Evaluate

some_words = st.lists(st.sampled_from("abc"), max_size=12)


def by_the_paper(summary: Sequence[str], article: Sequence[str]) -> list[int]:
    """Return the lengths of the fragments by the algorithm in figure 3 of Grusky et al. (2018)."""
    lengths, i = [], 0
    while i < len(summary):
        longest, j = 0, 0
        while j < len(article):
            if summary[i] != article[j]:
                j += 1
                continue
            length = 0
            while (
                i + length < len(summary) and j + length < len(article) and summary[i + length] == article[j + length]
            ):
                length += 1
            longest, j = max(longest, length), j + length
        lengths += [longest] if longest else []
        i += max(longest, 1)
    return lengths


@given(some_words, some_words)
def test_fragments_are_at_least_those_of_the_paper(answer: list[str], source: list[str]) -> None:
    lengths = fragments(answer, source)
    # The paper skips past a match, and so may miss a longer one that begins inside it. The words covered are the same.
    assert sum(lengths) == sum(by_the_paper(answer, source)) == sum(word in source for word in answer)


@given(some_words, some_words, st.integers(1, 3))
def test_ngrams_of_the_source_are_not_novel(answer: list[str], source: list[str], n: int) -> None:
    grams = {tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)}
    there = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    if grams:
        assert novel(answer, source, n) == pytest.approx(
            len([gram for gram in grams if gram not in there]) / len(grams)
        )
    else:
        assert np.isnan(novel(answer, source, n))


def test_scores_of_known_answers() -> None:
    source = "the cat sat on the mat because it was warm"
    answers = ["The cat sat on a mat.", source, "", "dogs bark"]
    scores = measure(["extractiveness"], answers, [[source]] * 4, Evaluate(), [source] * 4)
    assert scores["coverage"].rows == pytest.approx([100 * 5 / 6, 100, 0, 0])
    assert scores["density"].rows == pytest.approx([(4**2 + 1) / 6, 10, 0, 0])
    assert scores["novel_unigrams"].rows == pytest.approx([100 / 6, 0, np.nan, 100], nan_ok=True)
    assert scores["novel_bigrams"].rows == pytest.approx([40, 0, np.nan, 100], nan_ok=True)
    assert scores["novel_trigrams"].rows == pytest.approx([50, 0, np.nan, np.nan], nan_ok=True)
    assert scores["novel_trigrams"].value == pytest.approx(25)
    assert "references: coverage 100.0, density 10.0, novel_unigrams 0.0" in scores["coverage"].how


def test_answers_without_ngrams_have_no_novel_ones() -> None:
    scores = measure(["extractiveness"], ["", "a"], [["a b"]] * 2, Evaluate(), ["a b c"] * 2)
    assert scores["novel_bigrams"].value == 0
