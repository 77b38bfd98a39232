"""Codecs: texts that T5's tokenizer would change are decoded unchanged."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.core.codecs import NAMES, codec_named
from lora_ft.core.errors import UsageError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.models.bases import find_base, load_tokenizer
from lora_ft.tasks.schema import Task

NONE, TEXT, JSON = map(codec_named, ("none", "text", "json"))
ASCII = st.text(st.characters(max_codepoint=127))
MARKED = st.text(st.sampled_from(list(" \n\t\r{}<>~^`\\′•«»▁″ab1#;[]\"x>.-'*_/:,é😀")))
TEXTS = st.one_of(st.text(), ASCII, MARKED)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(TEXTS, some), max_leaves=12)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("one word", "one word"),
        ("Ana: hi\nBen: yo", "Ana: hi• Ben: yo"),
        ("a\n\nb\n", "a•• b•"),
        ("if x:\n    return", "if x:•′4 return"),
        (" a  b ", "′1 a′2 b′1"),
        (" " * 20 + "a", "′9′9′2 a"),
        ("a\tb\r\n", "a′> b′.•"),
        ("{x} <b> ~1 2^3 `ls` C:\\", "«x» ′[b> ′-1 2′*3 ′'ls′' C:′/"),
        ("5′ • «x»", "5′′ ′• ′«x′»"),
        ("so 😀 → ≥", "so ′#1f600; ′#2192; ′#2265;"),
    ],
)
def test_encoded_form_of_a_text(text: str, form: str) -> None:
    assert TEXT.encode(text) == TEXT.encode_prompt(text) == JSON.encode_prompt(text) == form
    assert TEXT.decode(form) == text


@given(TEXTS)
def test_every_text_is_decoded_unchanged(text: str) -> None:
    assert TEXT.decode(TEXT.encode(text)) == text == TEXT.canonical(text)


@given(TEXTS)
def test_encoded_form_has_no_characters_that_t5_lacks(text: str) -> None:
    form = TEXT.encode(text)
    assert not set(form) & set("{}<~^`\\\n\t\r▁") and not re.search(r"^ |  | $|[\x00-\x1f\x7f]", form)


@given(TEXTS)
def test_settled_prefix_decodes_to_a_prefix(form: str) -> None:
    whole = TEXT.decode(form)
    for end in range(len(form)):
        assert whole.startswith(TEXT.decode(TEXT.settled(form[:end])))


@pytest.mark.parametrize("form", ["a′", "′z", "′0", "′#;", "′#d800;", "′#ffffff;", "′#12"])
def test_invalid_form_is_unchanged(form: str) -> None:
    assert TEXT.decode(form) == form


def test_unfinished_escape_is_not_settled() -> None:
    assert [TEXT.settled(form) for form in ("ab′", "ab′#1f", "ab′′", "ab•")] == ["ab", "ab", "ab′′", "ab•"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"a": 1, "b": [true, null, "x y"], "c": {}}', "«a: 1; b: [true; null; x y]; c: «»»"),
        ('["1", "null", "", 1.50, "1980-01-02", "a: b"]', '["1"; "null"; ""; 1.50; 1980-01-02; a: b]'),
        ('{"a:b": "1; 2", "1": "say \\"x\\""}', '«"a:b": "1; 2"; "1": "say ′"x′""»'),
        ('{"code": "def f():\\n  return {}"}', '«code: "def f():•′2 return «»"»'),
        ('"word"', '"word"'),
        ("-1e5", "-1e5"),
    ],
)
def test_encoded_form_of_json(text: str, form: str) -> None:
    assert JSON.encode(text) == form and JSON.decode(form) == text == JSON.canonical(text)


@given(VALUES)
def test_every_json_value_is_decoded_unchanged(value: Any) -> None:
    form = JSON.encode(json.dumps(value, indent=1))
    assert json.loads(JSON.decode(form)) == value
    assert JSON.encode(JSON.decode(form)) == form


@given(TEXTS)
def test_any_answer_is_decoded_or_unchanged(form: str) -> None:
    try:
        json.loads(JSON.decode(form))
    except ValueError:
        assert JSON.decode(form) == form


@pytest.mark.parametrize(
    "form", ["", "The patient has asthma.", "«a: 1", "«a: 1»»", "[a; ]", "«a»", "[a] b", '"x', "«a: »", "[" * 5000]
)
def test_incomplete_form_and_sentence_are_unchanged(form: str) -> None:
    assert JSON.decode(form) == form


def test_spaces_between_parts_are_ignored() -> None:
    assert JSON.decode(" « a :1 ;b:[ x ; y ]» ") == '{"a": 1, "b": ["x", "y"]}'


def test_json_is_settled_only_at_the_end() -> None:
    assert JSON.settled("«a: 1»") == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "is not JSON .*: 'not json'; use codec: text for it"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": "\\ud800"}', "half a character"),
        ("[" * 100_000, "too deeply"),
    ],
)
def test_target_that_is_not_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        JSON.encode(text)


@given(TEXTS)
def test_codec_none_leaves_texts_unchanged(text: str) -> None:
    assert NONE.encode(text) == NONE.decode(text) == NONE.encode_prompt(text) == NONE.settled(text) == text


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown codec 'yaml'; use one of none, text, json"):
        codec_named("yaml")


def test_task_allows_every_codec() -> None:
    assert get_args(Task.model_fields["codec"].annotation) == NAMES


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return load_tokenizer(find_base("offline").folder, "text")


@pytest.mark.slow
@settings(max_examples=1000)
@given(st.one_of(ASCII, MARKED.map(lambda text: text.replace("″", ""))))
def test_tokenizer_of_t5_keeps_every_ascii_text(real: Tokenizer, text: str) -> None:
    assert real.decode(real.encode_targets([text])) == [text]
    assert real.unknown not in real.encode([text])[0]


@pytest.mark.slow
def test_tokenizer_of_t5_loses_newlines_and_braces_without_a_codec() -> None:
    plain = load_tokenizer(find_base("offline").folder)
    assert plain.decode(plain.encode(["{a}\n  b"])) == ["a b"]
