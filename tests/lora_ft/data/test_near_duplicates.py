"""Near duplicates: exactly the pairs that a comparison of all texts finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.near_duplicates import near_duplicates, runs

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=12).map(" ".join), max_size=8)


@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_exactly_the_similar_pairs_are_found(texts: list[str], pool: list[str], alike: float) -> None:
    expected = {}
    for i, text in enumerate(texts):
        for j, candidate in enumerate(pool):
            a, b = runs(text), runs(candidate)
            if a and b and len(a & b) >= alike * len(a | b):
                expected[i] = j
                break
    assert near_duplicates(texts, pool, alike=alike) == expected


def test_case_and_punctuation_are_ignored() -> None:
    assert near_duplicates(["Ana: Lunch at one?", "Ben: no"], ["other", "ana lunch, at ONE!"]) == {0: 1}


def test_texts_without_words_are_like_nothing() -> None:
    assert near_duplicates(["", "?!"], ["", "?!"]) == {}


def test_a_word_changed_in_a_long_text_leaves_it_nearly_the_same() -> None:
    text = [f"word{i}" for i in range(40)]
    changed = [*text[:20], "other", *text[21:]]
    assert near_duplicates([" ".join(changed)], [" ".join(text)]) == {0: 0}
    assert near_duplicates([" ".join(reversed(text))], [" ".join(text)]) == {}
