"""Words of every language, and equality with rouge-score on ASCII."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from lora_ft.data.words import UnicodeTokenizer, dropped_share, tokenizer_of
from lora_ft.evaluation.metrics import measure
from lora_ft.tasks.evaluate import Evaluate

# Two sentences about different things; rouge-score's tokenizer leaves splinters of both: ng, t, c, i, ...
VIETNAMESE = ("Hôm nay trời nắng và tôi đang đi chợ mua rau.", "Công ty tăng lương cho nhân viên từ tháng tới.")
JAPANESE = "今日は天気がいいです。明日は雨が降るでしょう。"


@given(st.text(string.printable, max_size=60), st.booleans())
@example("Running_quickly 3rd x2 don't", True)
def test_on_ascii_the_words_are_those_of_rouge_score(text: str, use_stemmer: bool) -> None:
    assert UnicodeTokenizer(use_stemmer).tokenize(text) == DefaultTokenizer(use_stemmer).tokenize(text)


@given(st.text(max_size=40))
def test_every_letter_and_digit_is_in_a_word(text: str) -> None:
    words = "".join(UnicodeTokenizer().tokenize(text))
    brought = unicodedata.normalize("NFKC", text).lower()
    assert [c for c in words if unicodedata.category(c)[0] in "LN"] == [
        c for c in brought if unicodedata.category(c)[0] in "LN"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tiếng Việt, rất hay!", ["tiếng", "việt", "rất", "hay"]),
        ("今日はCPUを2個", ["今", "日", "は", "cpu", "を", "2", "個"]),
        ("ภาษาที่ดี", ["ภ", "า", "ษ", "า", "ที่", "ดี"]),
        ("ພາສາ", ["ພ", "າ", "ສ", "າ"]),
        ("ខ្មែរ", ["ខ្", "មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("पूर्व प्रधानमन्त्री", ["पूर्व", "प्रधानमन्त्री"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("Привет, мир_и", ["привет", "мир", "и"]),
        ("ＡＢＣ ｶﾅ", ["abc", "カ", "ナ"]),
    ],
)
def test_words_of_other_scripts(text: str, words: list[str]) -> None:
    assert UnicodeTokenizer().tokenize(text) == words


def test_a_letter_is_the_same_however_it_is_encoded() -> None:
    composed, apart = (unicodedata.normalize(form, "Tiếng Việt") for form in ("NFC", "NFD"))
    assert composed != apart
    assert UnicodeTokenizer().tokenize(composed) == UnicodeTokenizer().tokenize(apart)


def test_evaluate_256_equal_texts_score_100() -> None:
    for language, text in (("ja", JAPANESE), ("ne", "पूर्व प्रधानमन्त्री"), ("vi", VIETNAMESE[0]), ("th", "สวัสดีครับ")):
        scores = measure(["rouge", "rougeSU4", "f1"], [text], [[text]], Evaluate(language=language))
        assert {name: score.value for name, score in scores.items()} == pytest.approx(dict.fromkeys(scores, 100.0))
    assert RougeScorer(["rouge1"]).score(JAPANESE, JAPANESE)["rouge1"].fmeasure == 0  # what it is about


def test_evaluate_256_unrelated_vietnamese_no_longer_scores() -> None:
    answer, reference = VIETNAMESE
    scores = {
        words: measure(["rouge"], [answer], [[reference]], Evaluate(language="vi", rouge_tokenizer=words))["rouge1"]
        for words in ("ascii", "auto")
    }
    assert scores["ascii"].value == pytest.approx(25)
    assert scores["auto"].value == 0


def test_unicode_words_are_the_default_outside_english_only() -> None:
    text, reference = ["größe"], [["grüße"]]
    assert measure(["rouge"], text, reference, Evaluate())["rouge1"].value > 0  # gr e, gr e
    assert measure(["rouge"], text, reference, Evaluate(rouge_tokenizer="unicode"))["rouge1"].value == 0
    assert measure(["rouge"], text, reference, Evaluate(language="de"))["rouge1"].value == 0
    assert measure(["rouge"], text, reference, Evaluate(language="de", rouge_tokenizer="ascii"))["rouge1"].value > 0


def test_the_stemmer_is_for_english_words() -> None:
    english = tokenizer_of(Evaluate(rouge_tokenizer="unicode"))
    assert english.tokenize("running naïvely was") == ["run", "naïvely", "was"]
    assert tokenizer_of(Evaluate(language="de")).tokenize("Leistungen singen") == ["leistungen", "singen"]


def test_stop_words_are_left_out_by_their_spelling() -> None:
    for words in ("ascii", "unicode"):
        tokenizer = tokenizer_of(Evaluate(stop_words=True, rouge_tokenizer=words))
        assert tokenizer.tokenize("The problem was having no doctors, wasn't it?") == ["problem", "doctor"]
        assert tokenizer.tokenize("I was there.") == tokenizer_of(Evaluate()).tokenize("I was there.")
    a, b = ["the cat is in the house"], [["the dog is in the garden"]]
    assert measure(["rouge"], a, b, Evaluate(stop_words=True))["rouge1"].value == 0


def test_share_of_letters_that_the_ascii_tokenizer_drops() -> None:
    assert dropped_share(["plain text, 12!"]) == 0
    assert dropped_share(["", "?!"]) == 0
    assert dropped_share(["häuser"]) == pytest.approx(1 / 6)
    assert dropped_share([JAPANESE]) == 1
