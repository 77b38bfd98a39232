"""Constraints: each row of a batch has its own state, whatever becomes of the rows between two steps."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from lora_ft.core.codecs import Codec, codec_named
from lora_ft.core.constraint import Constraint, Rows, constrained
from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.tokenizer import Tokenizer
from tests.lora_ft.core.answers import END, tokenizer_of

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["one", "two"]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMS = ("«a: one»", "«a: two; b: [true; false]»", "«a: two; b: []»")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tokenizer_of("json")


def tokens_of(tokenizer: Tokenizer, form: str) -> list[int]:
    return tokenizer.encode_forms([form])[0]


def texts_after(constraint: Constraint, tokenizer: Tokenizer, prefix: list[int]) -> set[str]:
    (allowed,) = Rows(constraint).allowed(np.array([[0, *prefix]]), tokenizer.rows)
    return set(tokenizer.texts(np.flatnonzero(allowed)))


def test_rows_have_their_own_state_in_any_order(tokenizer: Tokenizer) -> None:
    constraint = Constraint(SCHEMA, tokenizer)
    forms = [tokens_of(tokenizer, form) for form in FORMS]
    rows, order = Rows(constraint), [0, 1, 2, 1]
    for length in range(max(map(len, forms)) + 2):
        prefixes = [[*forms[i], *[0] * 99][:length] for i in order]
        allowed = rows.allowed(np.array([[0, *prefix] for prefix in prefixes]), tokenizer.rows)
        for mask, prefix in zip(allowed, prefixes, strict=True):
            (alone,) = Rows(constraint).allowed(np.array([[0, *prefix]]), tokenizer.rows)
            assert np.array_equal(mask, alone)
        order = [*order[1:], order[0]] if length % 2 else order[::-1]


def test_only_the_end_follows_a_whole_an_ended_and_a_wrong_answer(tokenizer: Tokenizer) -> None:
    constraint = Constraint(SCHEMA, tokenizer)
    whole = tokens_of(tokenizer, FORMS[0])
    for prefix in (whole[:-1], whole, [*whole, 0, 0], tokens_of(tokenizer, "«x")[:-1]):
        assert texts_after(constraint, tokenizer, prefix) == {"</s>"}


def test_a_choice_is_open_and_a_name_may_have_any_tokens(tokenizer: Tokenizer) -> None:
    constraint = Constraint(SCHEMA, tokenizer)
    assert texts_after(constraint, tokenizer, tokens_of(tokenizer, "«a: ")[:-1]) == {"o", "t"}
    assert texts_after(constraint, tokenizer, tokens_of(tokenizer, "«a: two")[:-1]) == {";", "»"}


def test_tokens_beyond_the_tokenizer_are_never_allowed(tokenizer: Tokenizer) -> None:
    (allowed,) = Rows(Constraint(SCHEMA, tokenizer)).allowed(np.array([[0]]), tokenizer.rows + 40)
    assert not allowed[tokenizer.rows :].any() and allowed.any()


def test_options_share_a_constraint_and_so_a_batch(tokenizer: Tokenizer) -> None:
    first, second = (Options.of(constrained({"json_schema": dict(SCHEMA)}, tokenizer)) for _ in range(2))
    assert first == second and not first.plain
    assert first.constraint is not None and first.constraint.end == END
    assert Options.of(constrained({"json_schema": False}, tokenizer)).plain
    with pytest.raises(UsageError, match="is not a JSON schema"):
        constrained({"json_schema": "schema.json"}, tokenizer)


def test_adapters_with_the_same_codec_share_a_constraint(tokenizer: Tokenizer) -> None:
    """Its vocabulary takes a third of a second for T5, in which a server answers nobody else."""
    adapters = [tokenizer.through(codec_named(name)) for name in ("json", "json", "text")]
    one, two, other = (constrained({"json_schema": {"type": "array"}}, adapter)["constraint"] for adapter in adapters)
    assert one is two
    assert one is not other


@pytest.mark.parametrize("option", [{"min_new_tokens": 2}, {"no_repeat_ngram_size": 2}, {"allowed": [[4]]}])
def test_options_that_may_leave_no_token_are_refused(option: dict[str, Any], tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        Options.of(constrained({"json_schema": SCHEMA, **option}, tokenizer))


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "llguidance":
            raise ModuleNotFoundError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'lora-ft\[constrained\]'"):
        Constraint(SCHEMA, tokenizer.through(Codec()))
