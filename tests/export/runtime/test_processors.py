"""Each processor edits logits like its counterpart in transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.trie import Trie
from lora_ft.export.runtime.processors import (
    Processor,
    force,
    log_softmax,
    no_bad_words,
    no_repeat_ngram,
    only,
    only_while,
    processors,
    repetition_penalty,
    softmax,
    suppress,
)

START, END = 0, 1
SPECIAL = SpecialTokens(START, (END,), 0)
VOCABULARY = 7  # few, so that tokens and sequences of them repeat
TOKEN = st.integers(2, VOCABULARY - 1)
Step = tuple[np.ndarray, np.ndarray]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Draw (tokens so far, logits of the next token) for rows of equal length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, length = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    tokens = np.pad(rng.integers(2, draw(st.integers(3, VOCABULARY)), (rows, length)), ((0, 0), (1, 0)))
    return tokens, rng.normal(scale=5, size=(rows, VOCABULARY)).astype(np.float32)


def assert_same(ours: Processor | Sequence[Processor], theirs: LogitsProcessor | LogitsProcessorList, at: Step) -> None:
    tokens, logits = at
    actual = logits.copy()
    for process in [ours] if callable(ours) else ours:
        actual = process(tokens, actual)
    expected = theirs(torch.from_numpy(tokens), torch.from_numpy(logits.copy())).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@given(at=steps(), penalty=st.floats(0.1, 10))
def test_the_repetition_penalty_equals_that_of_transformers(at: Step, penalty: float) -> None:
    assert_same(repetition_penalty(penalty), RepetitionPenaltyLogitsProcessor(penalty), at)


def test_a_repeated_token_is_penalized_once() -> None:
    logits = np.array([[8.0, 0.0, 4.0, -4.0, 1.0]], np.float32)
    penalized = repetition_penalty(2.0)(np.array([[0, 2, 3, 2, 3, 2]]), logits)
    assert penalized.tolist() == [[4, 0, 2, -8, 1]]


@given(at=steps(), size=st.integers(1, 5))
def test_no_repeat_ngrams_equal_those_of_transformers(at: Step, size: int) -> None:
    assert_same(no_repeat_ngram(size), NoRepeatNGramLogitsProcessor(size), at)


def test_no_repeat_ngrams_are_per_row() -> None:
    tokens = np.array([[0, 3, 4, 3], [0, 4, 3, 4], [0, 3, 4, 2]])
    edited = no_repeat_ngram(2)(tokens, np.zeros((3, 5), np.float32))
    assert np.argwhere(np.isinf(edited)).tolist() == [[0, 4], [1, 3]]


@given(at=steps(), words=st.lists(st.lists(TOKEN, min_size=1, max_size=4), min_size=1, max_size=5))
def test_bad_words_equal_those_of_transformers(at: Step, words: list[list[int]]) -> None:
    assert_same(no_bad_words([tuple(word) for word in words]), NoBadWordsLogitsProcessor(words, END), at)


def test_a_bad_word_is_banned_at_its_last_token() -> None:
    tokens = np.array([[0, 5, 2, 3], [0, 2, 3, 5], [0, 3, 2, 3]])
    edited = no_bad_words([(2, 3, 4), (6, 6, 6, 6, 6, 6, 1)])(tokens, np.zeros((3, 7), np.float32))
    assert np.argwhere(np.isinf(edited)).tolist() == [[0, 4], [2, 4]]


@given(at=steps(), banned=st.lists(st.integers(0, VOCABULARY - 1), min_size=1))
def test_suppressed_tokens_equal_those_of_transformers(at: Step, banned: list[int]) -> None:
    assert_same(suppress(tuple(banned)), SuppressTokensLogitsProcessor(banned), at)


def prefix_allowed(trie: Trie) -> LogitsProcessor:
    return PrefixConstrainedLogitsProcessor(lambda _, tokens: trie.after(tokens[1:].tolist()), num_beams=1)


@given(at=steps(), allowed=st.lists(st.lists(TOKEN, min_size=1, max_size=4), min_size=1, max_size=9))
def test_allowed_answers_equal_those_of_transformers(at: Step, allowed: list[list[int]]) -> None:
    trie = Trie(allowed, END)
    assert_same(only(trie), prefix_allowed(trie), at)


@given(at=steps(), token=st.integers(0, VOCABULARY - 1))
def test_forced_tokens_equal_those_of_transformers(at: Step, token: int) -> None:
    length = at[0].shape[1]
    assert_same(force((token,)), ForcedEOSTokenLogitsProcessor(length + 1, token), at)


@given(at=steps(), count=st.integers(0, 12))
def test_a_condition_receives_the_number_of_new_tokens(at: Step, count: int) -> None:
    counts: list[int] = []

    def condition(length: int) -> bool:
        counts.append(length)
        return length == count

    tokens, logits = at
    length = only_while(condition, force((3,)))(tokens, logits.copy())
    assert counts == [tokens.shape[1] - 1]
    assert np.array_equal(length, logits) == (counts != [count])


CHOSEN: dict[str, tuple[dict[str, Any], Callable[[int], list[LogitsProcessor]]]] = {
    "nothing": ({}, lambda limit: []),
    "repetition_penalty": ({"repetition_penalty": 1.5}, lambda limit: [RepetitionPenaltyLogitsProcessor(1.5)]),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, lambda limit: [NoRepeatNGramLogitsProcessor(2)]),
    "bad_words_ids": (
        {"bad_words_ids": [[2], [3, 4], [END], [2, END]]},
        lambda limit: [NoBadWordsLogitsProcessor([[2], [3, 4], [END], [2, END]], END)],
    ),
    "the end as the only bad word": ({"bad_words_ids": [[END]]}, lambda limit: []),
    "min_new_tokens": ({"min_new_tokens": 4}, lambda limit: [MinNewTokensLengthLogitsProcessor(1, 4, END)]),
    "forced_bos_token_id": ({"forced_bos_token_id": 5}, lambda limit: [ForcedBOSTokenLogitsProcessor(5)]),
    "forced_bos_token_id that is the start": (
        {"forced_bos_token_id": START},
        lambda limit: [ForcedBOSTokenLogitsProcessor(START)],
    ),
    "forced_eos_token_id": (
        {"forced_eos_token_id": END},
        lambda limit: [ForcedEOSTokenLogitsProcessor(limit + 1, END)],
    ),
    "suppress_tokens": ({"suppress_tokens": [2, 5]}, lambda limit: [SuppressTokensLogitsProcessor([2, 5])]),
    "begin_suppress_tokens": (
        {"begin_suppress_tokens": [2, 5]},
        lambda limit: [SuppressTokensAtBeginLogitsProcessor([2, 5], 1)],
    ),
    "allowed": (
        {"allowed": [[3, 4], [3], [2, 2, 2]]},
        lambda limit: [prefix_allowed(Trie([[3, 4], [3], [2, 2, 2]], END))],
    ),
    "all of them": (
        {
            "repetition_penalty": 0.7,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[3], [2, 4]],
            "min_new_tokens": 6,
            "forced_bos_token_id": 4,
            "forced_eos_token_id": 6,
            "suppress_tokens": [5],
            "begin_suppress_tokens": [2],
        },
        lambda limit: [  # in transformers' order
            RepetitionPenaltyLogitsProcessor(0.7),
            NoRepeatNGramLogitsProcessor(3),
            NoBadWordsLogitsProcessor([[3], [2, 4]], END),
            MinNewTokensLengthLogitsProcessor(1, 6, END),
            ForcedBOSTokenLogitsProcessor(4),
            ForcedEOSTokenLogitsProcessor(limit + 1, 6),
            SuppressTokensLogitsProcessor([5]),
            SuppressTokensAtBeginLogitsProcessor([2], 2),  # the first that is not forced
        ],
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
@given(at=steps(), limit=st.integers(6, 14))
def test_options_select_the_processors_of_transformers(name: str, at: Step, limit: int) -> None:
    values, theirs = CHOSEN[name]
    ours = processors(Options.of({"max_new_tokens": limit, **values}), SPECIAL)
    assert len(ours) == len(theirs(limit))
    assert_same(ours, LogitsProcessorList(theirs(limit)), at)


@given(at=steps(), scale=st.sampled_from([1e-3, 1.0, 1e3]), hidden=st.integers(0, VOCABULARY - 1))
def test_probabilities_equal_those_of_torch(at: Step, scale: float, hidden: int) -> None:
    logits = at[1] * np.float32(scale)
    logits[:, :hidden] = -np.inf
    given_logits = torch.from_numpy(logits)
    np.testing.assert_allclose(softmax(logits), given_logits.softmax(-1).numpy(), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(log_softmax(logits), given_logits.log_softmax(-1).numpy(), rtol=1e-5, atol=1e-6)
    assert softmax(logits).dtype == log_softmax(logits).dtype == np.float32


NAMES = """
import sys, tracemalloc
import numpy as np
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.processors import processors

options = Options(
    repetition_penalty=1.5, no_repeat_ngram_size=2, bad_words_ids=((3, 4),), min_new_tokens=9, suppress_tokens=(5,)
)
edits = processors(options, SpecialTokens(0, (1,), 0))
tokens, logits = np.array([[0, 3, 2, 3]]), np.zeros((1, 7), np.float32)
tracemalloc.start()
for _ in range(20_000):
    for edit in edits:
        edit(tokens, logits)
print(tracemalloc.get_traced_memory()[1])
"""


def test_steps_do_not_fill_the_table_of_names() -> None:
    """Some functions of numpy intern a name in each call. Removed names take up Python's table until it doubles."""
    printed = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 100_000  # bytes; the table that has doubled takes 1,000,000
