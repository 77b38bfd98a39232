"""Sentences: the same on every machine, in many languages, and in linear time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.sentences import SPLITTER, split_sentences

SENTENCES = [
    ["One is here.", "Two is there!", "Is it?"],
    ["Mr. Smith met Dr. J. R. Jones in Washington, D.C.", "He liked it."],
    ['He said: "Stop!"', "Then he left (at 5 p.m.)", "Nobody followed."],
    ["I live in the U.S. and work, e.g. at night.", "Pay is 3.14 at example.com."],
    ["1. Do this.", "2. Then do that."],
    ["hi.", "how are you?", "i am fine"],  # answers of models trained on small letters
    ["Wait... and see.", "Wow...", "Really?!"],
    ["No. 7 is open.", "No.", "Not yet."],
    ["今日は天気がいいです。", "明日は雨が降るでしょう。"],
    ["「はい。」と彼は言った。", "終わり！"],
    ["“今天很好。”", "“明天呢？”"],
    ["नमस्ते।", "आप कैसे हैं?"],
    ["مرحبا؟", "نعم."],
    ["یہ ایک ہے۔", "وہ دو ہیں۔"],
    ["Բարեւ։", "Ինչպես ես։"],
    ["네.", "알겠습니다."],
    ["Das kostet z. B. 3 Euro.", "Das ist bzw. War billig."],
    ["Это г. Москва.", "А это не она."],
    ["¿Qué tal?", "¡Muy bien!", "El Sr. López llegó."],
    ["Hôm nay trời nắng.", "Tôi đi chợ."],
]


@pytest.mark.parametrize("sentences", SENTENCES, ids=lambda sentences: sentences[0][:12])
def test_sentences_end_as_a_reader_expects(sentences: list[str]) -> None:
    wide = sentences[0][-1] in "。”"
    joined = ("" if wide else " ").join(sentences)
    assert split_sentences(joined) == sentences


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\n\n"])
def test_a_line_break_ends_a_sentence(end: str) -> None:
    assert split_sentences(f"no stop here{end}and none there") == ["no stop here", "and none there"]


@given(st.text(max_size=80))
def test_nothing_but_blanks_is_lost(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@pytest.mark.parametrize("unit", [".", '."', "a. ", "... ", "Mr. ", "etc. ", "a.b.", "! ", " ", "(", "。」"])
def test_long_runs_take_linear_time(unit: str) -> None:
    assert split_sentences(unit * (300_000 // len(unit))) is not None  # quadratic code would take minutes


def test_a_change_of_the_cases_above_raises_the_version() -> None:
    assert SPLITTER == "lora-ft sentences 1"
