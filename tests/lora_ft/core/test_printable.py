"""Escaping of untrusted text for printing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.printable import printable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain, ünïcode, 日本語, 🙂", "plain, ünïcode, 日本語, 🙂"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("\x1b[2Jcleared", "\\u001b[2Jcleared"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("back\b\rover", "back\\u0008\\u000dover"),
        ("\x9b31mC1", "\\u009b31mC1"),
        ("safe\u202egnp.exe", "safe\\u202egnp.exe"),
        ("half \ud83d", "half \\ud83d"),
        ("مرحبا\u200f", "مرحبا\u200f"),
    ],
)
def test_unsafe_characters_become_their_codes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec="utf-8")))
def test_json_stays_the_same_value(text: str) -> None:
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


@given(st.text())
def test_printable_text_is_encodable_and_unchanged(text: str) -> None:
    printable(text).encode()
    assert printable(printable(text)) == printable(text)
