"""Names and numbers of a text, found by capital letters and digits, and looked up in another text.

No model is used, so the result is the same on every machine, and every name that is found can be read in the text. In
return, some names are not found: those at the start of a sentence, and those in scripts and languages where capital
letters do not mark names. Numbers are found where they are written with digits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

import regex

from lora_ft.data.sentences import split_sentences

# Letters that have cases. In "Tom은" and "Appleは", the name ends before the particle.
_WORD = regex.compile(r"(?<![\p{Lu}\p{Ll}\p{Lt}\p{M}\p{N}])[\p{Lu}\p{Ll}\p{Lt}][\p{Lu}\p{Ll}\p{Lt}\p{M}\p{N}]*")
_NUMBER = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{Nd}+(?:[.,:'’\u00a0\u202f]\p{Nd}+)*")
_THOUSANDS = regex.compile(r"\d{1,3}(?:[.,'’\u00a0\u202f]\d{3})+")
_JOINTS = frozenset((" ", "-", "'", "’", ". ", ".", " & "))  # inside a name: "Jean-Luc O'Brien", "J. Smith"
_OPENING = '"“”„«»‹›‘:([{—–•*…'  # after these, a capital letter may begin a sentence
# Languages that capitalize every noun.
_NOUNS = """
de deu ger lb ltz nds gsw bar
"""
# Languages in which names have endings by case.
_CASES = """
az be bs cs el et fi hr hu hy ka kk la lt lv mk pl ro ru sk sl sq sr tr uk
"""
_TITLES = """
mr mrs ms miss mx dr prof sir madam mme mlle hr fr sr sra
"""
_ALL_NOUNS, _DECLINED, _IGNORED = (frozenset(words.split()) for words in (_NOUNS, _CASES, _TITLES))

_UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_DECADES = """
twenty thirty forty fifty sixty seventy eighty ninety
"""
_TENS = {word: 10 * i for i, word in enumerate(_DECADES.split(), 2)}
_SPELLED = {word: i for i, word in enumerate(_UNITS.split())} | _TENS | {"dozen": 12, "hundred": 100, "thousand": 1000}


def marks_names(texts: Iterable[str], language: str) -> bool:
    """Return whether capital letters mark names: most letters of the texts have a case, and the language uses it so."""
    if language in _ALL_NOUNS:
        return False
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return 2 * sum(letter.lower() != letter.upper() for letter in letters) > len(letters)


def names(text: str) -> list[str]:
    """Return the distinct names of a text: words with a capital letter inside a sentence, joined if adjacent.

    A sentence in which every word is capitalized has none, since it is a heading or shouted.
    """
    distinct: dict[str, None] = {}
    for sentence in split_sentences(unicodedata.normalize("NFKC", text)):
        words = list(_WORD.finditer(sentence))
        if any(word[0][0].islower() for word in words):
            distinct |= dict.fromkeys(_names_of(sentence, words))
    return list(distinct)


def numbers(text: str) -> list[str]:
    """Return the distinct numbers of a text as they are written. Digits behind letters ("Person1") are not numbers."""
    return list(dict.fromkeys(_NUMBER.findall(unicodedata.normalize("NFKC", text))))


class Source:
    """A text in which names and numbers are looked up.

    Args:
        text: Source of the answers.
        language: ISO 639 code of its language.
    """

    def __init__(self, text: str, language: str) -> None:
        normal = unicodedata.normalize("NFKC", text)
        self._words = {word.lower() for word in _WORD.findall(normal)}
        self._prefixes = _prefixes(self._words) if language in _DECLINED else frozenset()
        self._numbers = {spelling for number in numbers(normal) for spelling in _spellings(number)}
        if language == "en":
            self._numbers |= set(_spelled_out(normal))

    def has_name(self, name: str) -> bool:
        """Return whether the source has every word of a name, in any case and order.

        English plurals and possessives count as the name itself. In languages with declined names, words that differ
        by an ending of up to 3 letters count as equal.
        """
        words = [word.lower() for word in _WORD.findall(name)]
        named = [word for word in words if word not in _IGNORED] or words
        return all(self._has(word) for word in named)

    def has_number(self, number: str) -> bool:
        """Return whether the source has a number, however its thousands and decimals are separated."""
        return not self._numbers.isdisjoint(_spellings(number))

    def _has(self, word: str) -> bool:
        if {word, f"{word}s", word.removesuffix("s")} & self._words:
            return True
        return bool(self._prefixes) and not self._prefixes.isdisjoint(_stems(word))


def _names_of(sentence: str, words: list[regex.Match[str]]) -> Iterator[str]:
    """Yield the names of a sentence."""
    run: list[regex.Match[str]] = []
    for word in words:
        is_name = word[0][0].isupper() and word[0] != "I" and not _may_begin(sentence[: word.start()])
        if run and not (is_name and sentence[run[-1].end() : word.start()] in _JOINTS):
            yield sentence[run[0].start() : run[-1].end()]
            run = []
        run += [word] if is_name else []
    if run:
        yield sentence[run[0].start() : run[-1].end()]


def _may_begin(before: str) -> bool:
    """Return whether a word may begin a sentence, by the text before it."""
    before = before.rstrip()
    return not any(map(str.isalpha, before)) or before[-1] in _OPENING or before[-2:] in (" '", "('")


def _stems(word: str) -> set[str]:
    """Return the beginnings of a word without endings of up to 3 letters; at least 3 letters remain."""
    return {word[:length] for length in range(max(3, len(word) - 3), len(word) + 1)}


def _prefixes(words: Iterable[str]) -> frozenset[str]:
    return frozenset(stem for word in words for stem in _stems(word))


def _spellings(number: str) -> set[str]:
    """Return the values that a number may mean: "9,000" is 9000, and 9 with three decimals."""
    plain = "".join(str(unicodedata.digit(letter)) if letter.isdigit() else letter for letter in number)
    values = {plain.removesuffix(":00"), plain}
    if _THOUSANDS.fullmatch(plain):
        values.add(regex.sub(r"\D", "", plain))
    return {_shortest(value) for value in values}


def _shortest(value: str) -> str:
    """Return a number without leading zeros, and without zeros at the end of its decimals."""
    whole, separator, decimals = value.replace(",", ".").rpartition(".")
    if separator and "." not in whole and not (decimals := decimals.rstrip("0")):
        value = whole
    elif separator and "." not in whole:
        value = f"{whole}.{decimals}"
    return value.lstrip("0") or "0"


def _spelled_out(text: str) -> Iterator[str]:
    """Yield the values of English number words: "two", "twenty-five", "three hundred"."""
    before = 0
    for word in _WORD.findall(text.lower()):
        value = _SPELLED.get(word, 0)
        yield from [str(value)] if word in _SPELLED else []
        if before in _TENS.values() and 0 < value < 10:
            yield str(before + value)
        elif 0 < before < 100 and value in (12, 100, 1000):
            yield str(before * value)
        before = value
