"""The trie allows exactly the complete allowed answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.trie import Trie

END = 1
ANSWER = st.lists(st.integers(2, 5), min_size=1, max_size=5).map(tuple)


def spelled(trie: Trie, prefix: tuple[int, ...] = ()) -> set[tuple[int, ...]]:
    """Return every answer that can be generated token by token."""
    if prefix and prefix[-1] == END:
        return {prefix[:-1]}
    return {whole for token in trie.after(prefix) for whole in spelled(trie, (*prefix, token))}


@given(answers=st.sets(ANSWER, min_size=1, max_size=12))
def test_only_allowed_answers_can_be_generated(answers: set[tuple[int, ...]]) -> None:
    assert spelled(Trie(answers, END)) == answers


@given(answers=st.sets(ANSWER, min_size=1, max_size=12), data=st.data())
def test_forced_tokens_have_no_alternative(answers: set[tuple[int, ...]], data: st.DataObject) -> None:
    trie = Trie(answers, END)
    whole = (*data.draw(st.sampled_from(sorted(answers))), END)
    prefix = whole[: data.draw(st.integers(0, len(whole)))]
    forced = trie.forced(prefix)
    for i, token in enumerate(forced):
        assert trie.after((*prefix, *forced[:i])) == [token]
    after = (*prefix, *forced)
    assert after[-1:] == (END,) or len(trie.after(after)) > 1


def test_unknown_prefix_allows_only_the_end() -> None:
    trie = Trie([(2, 3), (2, 4)], END)
    assert trie.after([9]) == trie.after([2, 3]) == trie.after([2, 3, END]) == [END]
    assert trie.forced([]) == [2] and trie.after([2]) == [3, 4]


@given(answers=st.sets(ANSWER, min_size=1, max_size=12))
def test_tokens_are_those_of_all_answers(answers: set[tuple[int, ...]]) -> None:
    assert Trie(answers, END).tokens == sorted({END, *(token for answer in answers for token in answer)})
