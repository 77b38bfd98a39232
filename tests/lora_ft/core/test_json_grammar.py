"""Grammars: the answers that they allow are valid under the schema, and equal the values that targets have."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.core.codecs import codec_named
from lora_ft.core.constraint import Constraint
from lora_ft.core.errors import UsageError
from lora_ft.core.json_grammar import MAX_PROPERTIES, JsonGrammar
from tests.lora_ft.core.answers import NONE, accepts, random_answer, tokenizer_of

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

WORDS = st.sampled_from(["a", "b c", "x;y", "12", "true", "", "a:b", "[", '"', "{}", "<~", "é"])
CONSTANTS = st.lists(st.one_of(WORDS, st.none(), st.booleans(), st.integers(-9, 99), st.just([1, "a"])), min_size=1)
LEAVES = st.one_of(
    st.builds(lambda values: {"enum": values}, CONSTANTS),
    st.builds(lambda value: {"const": value}, WORDS),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-20, 20),
        st.integers(0, 90),
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}]),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 4},
        st.sampled_from(["^[ab1]{1,3}$", "^a|b$", "^(1|null|x/y)$"]),
    ),
)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from(["a", "b c", "1", "é", "x:y", "q"]), children, max_size=3)
    return st.one_of(
        st.builds(
            lambda properties, required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in required if name in properties],
                "additionalProperties": False,
            },
            objects,
            st.sets(st.sampled_from(["a", "b c", "1"])),
        ),
        st.builds(
            lambda item, least, more: {"type": "array", "items": item, "minItems": least, "maxItems": least + more},
            children,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(children, min_size=1, max_size=2)),
    )


SCHEMAS = nested(st.recursive(LEAVES, nested, max_leaves=4)).filter(lambda schema: "anyOf" not in schema)


@pytest.mark.parametrize("codec", ["json", "none", "text"])
@given(schema=SCHEMAS, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_every_answer_is_valid(codec: str, schema: dict[str, Any], seed: int) -> None:
    answer = random_answer(schema, codec, seed)
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(answer)), answer


ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "number"},
        "day": {"type": "string", "pattern": r"^\d{4}-\d{2}$"},
        "size": {"enum": ["s", "m; l", None, "2"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "any": True,
    },
    "required": ["name"],
    "$defs": {"part": {"type": "object", "properties": {"of": {"$ref": "#/$defs/part"}, "x": {"type": "string"}}}},
}


@pytest.mark.parametrize("codec", ["json", "none"])
@pytest.mark.parametrize(
    "value",
    [
        {"name": "Ann"},
        {"name": "", "count": -1.5e3},
        {"name": "12", "day": "2024-05", "size": "m; l"},
        {"name": "null", "size": None},
        {"name": "a: b; [c]", "size": "2", "parts": [{}, {"of": {"of": {"x": "y"}}, "x": "z"}]},
        {"name": "é »", "any": {"k": [1, "a", None, True, {"b": {}}]}},
    ],
)
def test_valid_targets_can_be_written(codec: str, value: Any) -> None:
    assert accepts(ORDER, codec, value)


@pytest.mark.parametrize("codec", ["json", "none"])
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"count": 1},
        {"name": 1},
        {"name": "a", "count": "1"},
        {"name": "a", "day": "24-05"},
        {"name": "a", "size": "l"},
        {"name": "a", "size": 2},
        {"name": "a", "parts": [{"y": "z"}]},
        {"name": "a", "other": 1},
        ["name"],
        "name",
    ],
)
def test_invalid_values_cannot(codec: str, value: Any) -> None:
    assert not accepts(ORDER, codec, value)


def test_unnamed_properties_need_a_schema_of_their_own() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}}
    for codec in ("json", "none"):
        assert accepts(schema, codec, {"a": None, "b": 1, "c": 2})
        assert accepts(schema, codec, {"b": 1})
        assert not accepts(schema, codec, {"b": 1, "a": 2})
        assert not accepts(schema, codec, {"b": None})


def test_an_object_that_must_not_be_empty() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "minProperties": 1}
    assert not accepts(schema, "json", {})
    assert accepts(schema, "json", {"a": None})
    assert accepts(schema, "json", {"b": None})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string"}, "an answer is an object or a list"),
        ({"enum": ["a"]}, "allows no object or list"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "/properties/a has the keyword not"),
        ({"oneOf": [{"type": "object"}]}, "has the keyword oneOf"),
        ({"type": "array", "items": {"anyOf": [{}], "type": "null"}}, "combines anyOf with type"),
        ({"type": "array", "items": {"$ref": "other.json"}}, "is in another file"),
        ({"type": "array", "items": {"$ref": "#/$defs/x"}}, "does not exist"),
        ({"type": "object", "required": ["a"]}, "requires 'a'"),
        ({"type": "array", "items": {"type": "text"}}, "is not a type of JSON"),
        ({"type": "array", "items": {"enum": []}}, "allows no value"),
        ({"type": "array", "items": 3}, "has no valid value"),
        ({"type": 5}, "is malformed"),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JsonGrammar.of(schema, codec_named("json"))


def test_a_schema_with_missing_characters_is_refused() -> None:
    schema = {"type": "object", "properties": {"名": {"type": "null"}}, "required": ["名"]}
    with pytest.raises(UsageError, match="needs the character '名'"):
        accepts(schema, "json", {"名": None})
    assert NONE not in tokenizer_of("json").texts(range(80))


@pytest.mark.parametrize("pattern", ["(?=a)b", "("])
def test_a_pattern_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="cannot be constrained"):
        accepts({"type": "array", "items": {"type": "string", "pattern": pattern}}, "json", [])


KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "allOf", "$ref"),
        *("minItems", "maxItems", "minLength", "pattern", "minimum", "minProperties", "title"),
    ]
)
VALUES = st.recursive(
    st.sampled_from(["object", "array", "string", "#", "#/items", "#/anyOf/7", "(", "", None, True, 0, -1, 2.5, 1e999]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(KEYWORDS, values, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("codec", ["json", "none"])
@given(schema=st.dictionaries(KEYWORDS, VALUES, max_size=5))
def test_any_object_is_a_constraint_or_a_usage_error(codec: str, schema: dict[str, Any]) -> None:
    with contextlib.suppress(UsageError):
        Constraint(schema, tokenizer_of(codec))


def test_limits_beyond_the_library_are_refused() -> None:
    schema = {"type": "array", "items": {"type": "string", "minLength": 10**6}, "minItems": 1}
    with pytest.raises(UsageError, match="cannot be constrained"):
        accepts(schema, "json", [])


def with_properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(count)}}


@pytest.mark.parametrize("codec", ["none", "json"])
def test_a_large_schema_is_a_constraint_and_a_larger_one_is_refused(codec: str) -> None:
    """llguidance ended the process at 3,000 properties."""
    tokenizer = tokenizer_of(codec)
    assert Constraint(with_properties(MAX_PROPERTIES), tokenizer)
    half = with_properties(MAX_PROPERTIES // 2)
    for schema in (with_properties(MAX_PROPERTIES + 1), {"anyOf": [half, {"type": "array", "items": half}, half]}):
        with pytest.raises(UsageError, match="exceeds 1,000 properties in all"):
            Constraint(schema, tokenizer)
