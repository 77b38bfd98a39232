"""Limits of untrusted JSON: valid JSON passes in any chunks, and JSON that would break a parser is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError
from lora_ft.core.json_limits import MAX_DEPTH, MAX_DIGITS, JsonLimits, parse_json

TEXTS = st.text(alphabet='ab"\\[]{}:,\n1e9ü😀', max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def check_in_chunks(data: bytes, size: int, max_string: int = 1000) -> None:
    limits = JsonLimits("x.json", max_string=max_string)
    for start in range(0, len(data), size):
        limits.check(data[start : start + size])


@given(VALUES, st.booleans(), st.integers(1, 9))
def test_json_within_limits_passes_in_any_chunks(value: Any, ascii_only: bool, size: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    check_in_chunks(text.encode(), size)
    assert parse_json(text, "x") == parse_json(text.encode(), "x") == json.loads(text)


@given(st.text(alphabet='"\\[]{} 1', max_size=40).map(json.dumps), st.integers(1, 9), st.integers(0, 400))
def test_content_of_strings_is_ignored(string: str, size: int, digits: int) -> None:
    check_in_chunks(f"[{string}, {json.dumps(digits * '1')}, {json.dumps(300 * '[')}, 1]".encode(), size)


@given(st.integers(1, 50), st.integers(0, 30))
def test_depth_is_limited_in_any_chunks(size: int, lead: int) -> None:
    fits, deep = MAX_DEPTH * "[" + MAX_DEPTH * "]", (MAX_DEPTH + 1) * '{"a":'
    check_in_chunks(fits.encode(), size)
    place = lead + 5 * MAX_DEPTH
    with pytest.raises(
        LoraFtError, match=rf"x\.json is out of bounds at byte {place:,} \(nested deeper than {MAX_DEPTH}"
    ):
        check_in_chunks(lead * b" " + deep.encode(), size)


@given(st.integers(1, 50), st.sampled_from(["{}", "-{}", "1.{}", "1e{}"]))
def test_numbers_are_limited_in_any_chunks(size: int, form: str) -> None:
    check_in_chunks(f"[{MAX_DIGITS * '1'}, {MAX_DIGITS * '2'}]".encode(), size)
    with pytest.raises(LoraFtError, match=r"a number of more than 300 characters"):
        check_in_chunks(f'["a", {form.format(4301 * "1")}]'.encode(), size)


@given(st.integers(1, 50), st.sampled_from([1, 20, 1000]))
def test_strings_are_limited_in_any_chunks(size: int, limit: int) -> None:
    check_in_chunks(json.dumps([limit * "x", limit * "y"]).encode(), size, max_string=limit)
    with pytest.raises(LoraFtError, match=rf"a string of more than {limit:,} bytes"):
        check_in_chunks(json.dumps(["", (limit + 1) * "x"]).encode(), size, max_string=limit)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "x is not JSON (Expecting value: column 1)"),
        ('{"a": 1,\n]', "x is not JSON (Expecting property name enclosed in double quotes: line 2, column 1)"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "x has the key 'c' twice in one object; remove one of the two"),
        ("[" + 4301 * "1" + "]", "x has a number of 4,301 digits (at most 300); write it in quotes"),
        (200_000 * "[", "x is out of bounds at byte 200 (nested deeper than 200 levels)"),
        (100_000 * '{"a":', "x is out of bounds at byte 1,000 (nested deeper than 200 levels)"),
        ('"\\ud83d"', "x holds half a character (a lone surrogate)"),
        (b'"\xff"', "x is not UTF-8 (byte 1)"),
        (b"\xff\xfe{\x00}\x00", "x is not UTF-8 (byte 0)"),
    ],
    ids=range(9),
)
def test_invalid_json_is_refused_with_the_reason(text: str | bytes, part: str) -> None:
    with pytest.raises(LoraFtError, match=re.escape(part)):
        parse_json(text, "x")


def test_surrogate_pairs_and_byte_order_mark_are_accepted() -> None:
    assert parse_json('"\\ud83d\\ude00"', "x") == "😀" and parse_json(b"\xef\xbb\xbf1", "x") == 1
