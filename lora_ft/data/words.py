"""Word tokenizers for ROUGE: rouge-score's default, and one that keeps letters outside ASCII."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import regex
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

ENGLISH = "en"
# Scripts without spaces between words: each character is a token, together with its marks.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TOKEN = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]&&{_UNSPACED}]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--{_UNSPACED}]+", regex.UNICODE
)
_PIECE = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[\w\p{{M}}--{_UNSPACED}]+|\s+|.", regex.DOTALL)
_CHARACTER = regex.compile(r"[\p{L}\p{N}]")

# English words of closed classes and their stems without apostrophes, as the tokenizers return them. Lists from
# packages are made for search engines, and also contain `problem`, `research` and `microsoft`.
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
    """A tokenizer for rouge-score that returns lowercase words of letters, digits and marks of any script.

    On ASCII the result equals that of rouge-score's default. Text is normalized first (NFKC), so that a word does not
    depend on the encoding of its letters. Han, kana, Thai, Lao, Khmer and Myanmar have no spaces between words, so each
    of their characters is a token.
    """

    def __init__(self, use_stemmer: bool = False) -> None:
        """Create the tokenizer; `use_stemmer` applies Porter's stemmer to ASCII words of more than 3 letters."""
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        words = _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
        if self._stem is None:
            return words
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in words]


class WithoutStopWords(Tokenizer):
    """A tokenizer without English stop words; a text of nothing but stop words keeps them all."""

    def __init__(self, tokenizer: Tokenizer, plain: Tokenizer) -> None:
        """Wrap a tokenizer; `plain` is the same without the stemmer, to recognize stop words by their spelling."""
        self._tokenizer, self._plain = tokenizer, plain

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        words, spelt = self._tokenizer.tokenize(text), self._plain.tokenize(text)
        content_words = [word for word, spelling in zip(words, spelt, strict=True) if spelling not in STOP_WORDS]
        return content_words or words


def pieces(text: str) -> list[str]:
    """Return the words, blanks and marks of a text, which joined are the text."""
    return _PIECE.findall(text)


def is_unicode(settings: Evaluate) -> bool:
    """Return whether a task uses `UnicodeTokenizer`."""
    if settings.rouge_tokenizer == "auto":
        return settings.language != ENGLISH
    return settings.rouge_tokenizer == "unicode"


def tokenizer_of(settings: Evaluate) -> Tokenizer:
    """Return the tokenizer of a task. The stemmer supports English only, and is not used for other languages."""
    kind = UnicodeTokenizer if is_unicode(settings) else DefaultTokenizer
    tokenizer = kind(settings.use_stemmer and settings.language == ENGLISH)
    return WithoutStopWords(tokenizer, kind(False)) if settings.stop_words else tokenizer


def dropped_share(texts: Iterable[str]) -> float:
    """Return the share of letters and digits that rouge-score's default drops, which is all outside ASCII."""
    total = dropped = 0
    for text in texts:
        characters = _CHARACTER.findall(text.lower())
        total += len(characters)
        dropped += sum(not character.isascii() for character in characters)
    return dropped / total if total else 0.0
