"""The trie lets through the allowed answers, whole, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.trie import Trie

END = 1
ANSWER = st.lists(st.integers(2, 5), min_size=1, max_size=5).map(tuple)


def spelled(trie: Trie, said: tuple[int, ...] = ()) -> set[tuple[int, ...]]:
    """Every answer that can be made step by step."""
    if said and said[-1] == END:
        return {said[:-1]}
    return {whole for token in trie.after(said) for whole in spelled(trie, (*said, token))}


@given(answers=st.sets(ANSWER, min_size=1, max_size=12))
def test_what_can_be_spelled_is_what_is_allowed(answers: set[tuple[int, ...]]) -> None:
    assert spelled(Trie(answers, END)) == answers


@given(answers=st.sets(ANSWER, min_size=1, max_size=12), data=st.data())
def test_forced_tokens_are_those_without_a_choice(answers: set[tuple[int, ...]], data: st.DataObject) -> None:
    trie = Trie(answers, END)
    whole = (*data.draw(st.sampled_from(sorted(answers))), END)
    said = whole[: data.draw(st.integers(0, len(whole)))]
    forced = trie.forced(said)
    for i, token in enumerate(forced):
        assert trie.after((*said, *forced[:i])) == [token]
    after = (*said, *forced)
    assert after[-1:] == (END,) or len(trie.after(after)) > 1


def test_where_no_answer_begins_only_the_end_is_left() -> None:
    trie = Trie([(2, 3), (2, 4)], END)
    assert trie.after([9]) == trie.after([2, 3]) == trie.after([2, 3, END]) == [END]
    assert trie.forced([]) == [2] and trie.after([2]) == [3, 4]
