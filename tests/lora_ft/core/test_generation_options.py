"""Generation options: names and defaults of transformers, and refusal of invalid values and combinations."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options, overridden

OURS = {"seed", "prompt_lookup", "allowed", "constraint", "mbr", "utility"}  # options that transformers lacks
NAMES = [field.name for field in fields(Options)]


def transformers_default(name: str) -> Any:
    """Return the default of transformers, which its GenerationConfig no longer holds from version 5 on."""
    value = getattr(GenerationConfig(), name)
    later = getattr(GenerationConfig, "_get_default_generation_params", dict)()
    return later.get(name) if value is None else value


@pytest.mark.parametrize("name", sorted(set(NAMES) - OURS - {"max_new_tokens"}))
def test_names_and_defaults_are_those_of_transformers(name: str) -> None:
    assert getattr(Options(), name) == (transformers_default(name) or type(getattr(Options(), name))())


def test_default_length_is_that_of_transformers() -> None:
    assert Options().max_new_tokens == transformers_default("max_length")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": -1}, "max_new_tokens -1"),
        ({"min_new_tokens": -1}, "min_new_tokens -1"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5, more than max_new_tokens = 4"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"num_return_sequences": 0}, "num_return_sequences 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size -2"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"num_beams": 1_000_000}, "num_beams 1000000"),
        ({"max_new_tokens": 10**9}, "max_new_tokens 1000000000"),
        ({"temperature": 1e-300}, "temperature 1e-300"),
        ({"length_penalty": 1e300}, "length_penalty 1e+300"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"early_stopping": "always"}, "early_stopping 'always'"),
        ({"do_sample": True, "num_beams": 2}, "do_sample and num_beams exclude each other"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"num_return_sequences": 4, "num_beams": 3}, "num_return_sequences=4"),
        ({"bad_words_ids": [[5], []]}, "bad_words_ids has an empty sequence"),
        ({"allowed": [[5], []]}, "allowed has an empty sequence"),
        ({"allowed": [[5], [6, 7, 8]], "max_new_tokens": 3}, "the longest of which has 4 tokens"),
        ({"allowed": [[5], [6], [5]], "num_return_sequences": 3, "num_beams": 3}, "num_return_sequences=3"),
        ({"allowed": [[5]], "min_new_tokens": 1}, "min_new_tokens and allowed answers exclude each other"),
        ({"allowed": [[5]], "forced_bos_token_id": 0}, "forced_bos_token_id and allowed answers"),
        ({"allowed": [[5]], "suppress_tokens": [9]}, "suppress_tokens and allowed answers"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options.of(values)
    assert words in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 1, "min_new_tokens": 1},
        {"max_new_tokens": 1, "min_new_tokens": 0},
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 9},
        {"top_k": 0, "top_p": 1.0, "no_repeat_ngram_size": 0},
        {"temperature": 1e-3, "repetition_penalty": 1e-3, "top_p": 1e-3},
        {"early_stopping": "never", "length_penalty": -2.0},
        {"early_stopping": True, "length_penalty": 0.0},
        {"allowed": ((5,), (6, 7)), "max_new_tokens": 3, "num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_values_at_the_edge_of_their_range_are_accepted(values: dict[str, Any]) -> None:
    options = Options.of(values)
    assert {name: getattr(options, name) for name in values} == values


@pytest.mark.parametrize("unknown", [["beams"], ["max_length"], ["z", "a"]])
def test_unknown_names_are_refused_with_a_list_of_options(unknown: list[str]) -> None:
    with pytest.raises(UsageError, match=f"unknown generation option {', '.join(sorted(unknown))}") as caught:
        Options.of(dict.fromkeys(unknown, 1) | {"num_beams": 2})
    assert all(name in caught.value.remedy for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_none_is_the_default(name: str) -> None:
    assert Options.of({name: None}) == Options()


@given(words=st.lists(st.lists(st.integers(0, 9), min_size=1), max_size=4), banned=st.lists(st.integers(0, 9)))
def test_lists_become_tuples(words: list[list[int]], banned: list[int]) -> None:
    options = Options.of({"bad_words_ids": words, "suppress_tokens": banned, "begin_suppress_tokens": tuple(banned)})
    assert options.bad_words_ids == tuple(map(tuple, words))
    assert options.suppress_tokens == options.begin_suppress_tokens == tuple(banned)
    assert isinstance(hash(options), int)


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().num_beams = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_new_tokens": 90, "min_new_tokens": 3},
        {"prompt_lookup": True},
        {"length_penalty": 2.0, "early_stopping": True},  # settings of beams without beams
        {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "seed": 4},  # settings of sampling without sampling
        {"bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": []},
    ],
)
def test_greedy_search_is_plain(values: dict[str, Any]) -> None:
    assert Options.of(values).plain


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"output_scores": True},
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[5]]},
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"allowed": [[5]]},
        {"forced_bos_token_id": 0},
        {"forced_eos_token_id": 0},
    ],
)
def test_other_options_are_not_plain(values: dict[str, Any]) -> None:
    assert not Options.of(values).plain


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"num_beams": True},
        {"temperature": "0.7"},
        {"suppress_tokens": 5},
        {"bad_words_ids": [5, 6]},
        {"allowed": [5, 6]},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": "3"},
        {"num_beams": 2.0},
        {"top_k": 2.5},
        {"length_penalty": float("nan")},
    ],
    ids=str,
)
def test_values_of_the_wrong_type_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Options.of(values)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    for values in (
        {"suppress_tokens": [999]},
        {"bad_words_ids": [[1, -1]]},
        {"allowed": [[2], [3, 80]]},
        {"forced_bos_token_id": 80},
    ):
        with pytest.raises(UsageError, match="is not in the vocabulary"):
            Options.of(values).check_tokens(80)
    Options.of({"suppress_tokens": [79], "bad_words_ids": [[0]]}).check_tokens(80)


@pytest.mark.parametrize(
    "values",
    [
        {"forced_bos_token_id": 7, "suppress_tokens": [3, 7]},
        {"forced_bos_token_id": 7, "bad_words_ids": [[7]]},
        {"forced_eos_token_id": 1, "suppress_tokens": [1]},
        {"forced_eos_token_id": 1, "bad_words_ids": [[4, 5], [1]]},
    ],
)
def test_token_cannot_be_both_forced_and_suppressed(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="both forced and suppressed"):
        Options.of(values)


def test_token_may_be_forced_if_only_others_are_suppressed() -> None:
    # After a forced first token, begin_suppress_tokens applies to the second token, as in transformers.
    Options.of(
        {
            "forced_bos_token_id": 7,
            "forced_eos_token_id": 1,
            "suppress_tokens": [3],
            "begin_suppress_tokens": [1, 7],
            "bad_words_ids": [[7, 8]],
        }
    )


@pytest.mark.parametrize("option", [{"mbr": 8}, {"temperature": 0.7}, {"top_k": 10}, {"top_p": 0.9}], ids=str)
def test_options_of_sampling_need_sampling(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=f"{name} has no effect without sampling .*set do_sample=true"):
        overridden({}, option)
    assert overridden({}, option | {"do_sample": True}) == option | {"do_sample": True}
    assert overridden({"do_sample": True}, option) == option | {"do_sample": True}
    # Checkpoints often have a temperature without sampling, and a call may turn off the sampling of a task.
    assert overridden(option, option | {"num_beams": 2}) == option | {"num_beams": 2}
    assert overridden(option | {"do_sample": True}, {"do_sample": False}) == option | {"do_sample": False}


def test_options_of_sampling_that_change_nothing_are_accepted() -> None:
    options = {"mbr": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    assert overridden({}, options) == options
    assert overridden({"mbr": 8, "do_sample": True}, {"mbr": None}) == {"mbr": 8, "do_sample": True}
