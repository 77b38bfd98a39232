"""Split text in any language into sentences, with the same result on every machine.

ROUGE-Lsum compares sentence by sentence, so its value depends on where sentences end. With splitters that load data,
scores change if the data is absent or has another version. This splitter is a pattern and lists of abbreviations. A
sentence ends at a line break, at the full stop of its script, or at an ASCII full stop. The full stop of an
abbreviation or an initial usually does not end one. When you change the result, raise the version in `SPLITTER`, which
is part of the score's signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPLITTER = "lora-ft sentences 1"
"""Name and version, for the signature of scores."""

_WIDE = "。！？｡．"  # scripts with these stops write no space after them
_STOPS = ".!?…‼⁇⁈⁉؟۔।॥։።፧၊။៕។᙮" + _WIDE
_CLOSING = "\"'”’»›)]}」』）】》〉"
_OPENING = "\"'“‘«‹([{「『（【《〈¿¡-–—*•"
# Possessive, and never starting within a run of stops, so that the time is linear in the length of the text.
_END = re.compile(rf"(?<![{_STOPS}])([{_STOPS}]++)([{re.escape(_CLOSING)}]*+)(\s*+)")
_NUMBER = re.compile(r"\d{1,3}|[ivxIVX]{1,4}|[A-Za-z]")
_NEAR = 40  # characters to examine on either side of a full stop

# Abbreviations before a name: a sentence hardly ever ends with one.
_BEFORE_NAMES = """
mr mrs ms mx dr prof st sr jr rev hon gen col lt sgt capt cmdr adm gov sen rep pres supt messrs mme mlle hr fr frl
dipl ing sra srta dna dott mons mgr vs cf resp bzw usw bspw ggf sog evtl inkl zzgl ул г гг стр им
"""
# Abbreviations before a number: "No. 7" is one sentence, "No. Not yet." is two.
_BEFORE_NUMBERS = """
no nos nr art abs fig figs eq sec ch vol p pp tel approx ca str núm pág págs рис см
"""
# Abbreviations that may end a sentence: it ends there unless a lowercase letter or a number follows.
_ANYWHERE = """
etc inc ltd co corp plc bros llc gmbh ave blvd rd sq al est dept univ assn eds ed min max misc ext incl excl am pm
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun
т д п руб тыс млн млрд
"""
_TITLES, _NUMBERED, _SHORT = (frozenset(words.split()) for words in (_BEFORE_NAMES, _BEFORE_NUMBERS, _ANYWHERE))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, without surrounding blanks; an empty text has none."""
    return [sentence for line in text.splitlines() for sentence in _of_line(line)]


def _of_line(line: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(line):
        if _ends(line, start, match):
            if sentence := line[start : match.end()].strip():
                yield sentence
            start = match.end()
    if remainder := line[start:].strip():
        yield remainder


def _ends(line: str, start: int, match: re.Match[str]) -> bool:
    """Return whether the sentence that begins at `start` ends at the matched run of full stops."""
    stops, closing, gap = match.groups()
    follows = line[match.end() : match.end() + _NEAR]
    if not follows:
        return True
    if not gap:  # "3.14", "example.com"; without a space, a sentence continues after quoted speech
        return stops[-1] in _WIDE and (not closing or follows[0] in _OPENING)
    follows = follows.lstrip(_OPENING)[:1]
    if stops != ".":
        return not (stops[0] in ".…" and follows.islower())
    before = line[max(start, match.start() - _NEAR) : match.start()].strip()
    word = re.split(r"\s", before.rstrip(_CLOSING))[-1].lstrip(_OPENING)
    if not word or (word == before and _NUMBER.fullmatch(word)):  # "1." and "a." begin an item of a list
        return False
    if word.lower() in _TITLES or (len(word) == 1 and word.lower() != word.upper() and word != "I"):
        return False
    if word.lower() in _NUMBERED:
        return not follows.isdigit()
    if word.lower() in _SHORT or "." in word.strip("."):  # "etc.", "p.m.", "U.S."
        return not (follows.islower() or follows.isdigit())
    return True
