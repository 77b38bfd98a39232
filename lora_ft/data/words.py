"""Texts as words: rouge-score's own tokenizer, and one for the languages whose letters that one drops."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Evaluate

ENGLISH = "en"
# Scripts written without spaces between words: every character, with its marks, is a token.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TOKEN = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]&&{_UNSPACED}]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--{_UNSPACED}]+", regex.UNICODE
)
_PIECE = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[\w\p{{M}}--{_UNSPACED}]+|\s+|.", regex.DOTALL)
_CHARACTER = regex.compile(r"[\p{L}\p{N}]")

# English words of closed classes and their stems without apostrophes, as the tokenizers leave them. The lists of
# packages are made for search engines: they hold `problem`, `research` and `microsoft`, too.
_STOP_WORDS = """
a an the this that these those i me my mine myself you your yours yourself yourselves he him his himself she her
hers herself it its itself we us our ours ourselves they them their theirs themselves who whom whose which what
am is are was were be been being have has had having do does did doing will would shall should can could may might
must ought s t d ll m re ve don doesn didn isn aren wasn weren hasn haven hadn won wouldn shan shouldn couldn mustn
and or but nor if because as until while than so though although whether
of at by for with about against between into through during before after above below to from up down in out on off
over under upon within without toward towards among per
again further then once here there when where why how all any both each few more most other some such no not only
own same too very just also
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


class UnicodeTokenizer(Tokenizer):
    """Words of letters, digits and marks of any script, in small letters, for rouge-score.

    On ASCII it does exactly what rouge-score's default does. Text is brought to one form first (NFKC), so that the same
    letters are the same word however they are encoded. Han, kana, Thai, Lao, Khmer and Myanmar, which put no spaces
    between words, give a token for each character.
    """

    def __init__(self, use_stemmer: bool = False) -> None:
        """`use_stemmer`: Porter's, for words of ASCII letters of more than 3, as rouge-score has it."""
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        words = _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
        if self._stem is None:
            return words
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in words]


class WithoutStopWords(Tokenizer):
    """A tokenizer's words but for the commonest English ones; a text of nothing else keeps them all."""

    def __init__(self, tokenizer: Tokenizer, plain: Tokenizer) -> None:
        """`plain`: the same tokenizer without the stemmer, to know stop words by their spelling."""
        self._tokenizer, self._plain = tokenizer, plain

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        words, spelt = self._tokenizer.tokenize(text), self._plain.tokenize(text)
        kept = [word for word, spelling in zip(words, spelt, strict=True) if spelling not in STOP_WORDS]
        return kept or words


def pieces(text: str) -> list[str]:
    """All of a text, in words, blanks and marks: joined again it is the text."""
    return _PIECE.findall(text)


def is_unicode(settings: Evaluate) -> bool:
    """Whether a task's words are those of `UnicodeTokenizer`."""
    if settings.rouge_tokenizer == "auto":
        return settings.language != ENGLISH
    return settings.rouge_tokenizer == "unicode"


def tokenizer_of(settings: Evaluate) -> Tokenizer:
    """The tokenizer that a task asks for. The stemmer knows English only, and is left out for other languages."""
    kind = UnicodeTokenizer if is_unicode(settings) else DefaultTokenizer
    made = kind(settings.use_stemmer and settings.language == ENGLISH)
    return WithoutStopWords(made, kind(False)) if settings.stop_words else made


def dropped_share(texts: Iterable[str]) -> float:
    """Share of the letters and digits of texts that rouge-score's own tokenizer drops: all that are not ASCII."""
    every = dropped = 0
    for text in texts:
        found = _CHARACTER.findall(text.lower())
        every += len(found)
        dropped += sum(not character.isascii() for character in found)
    return dropped / every if every else 0.0
