"""Sentences of a text in any language, split in the same way on every machine.

ROUGE-Lsum compares sentence by sentence, so its value depends on where sentences end. Splitters that load data give
other scores where the data is absent or of another version. This one is a pattern and a list: a sentence ends at a line
break, at the full stop of its script, or at an ASCII full stop that closes neither an abbreviation nor an initial.
Whoever changes what it returns raises its version, which is part of the score's signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPLITTER = "lora-ft sentences 1"
"""Name and version, for the signature of scores."""

_WIDE = "。！？｡．"  # scripts that write them put no blank behind
_STOPS = ".!?…‼⁇⁈⁉؟۔।॥։።፧၊။៕។᙮" + _WIDE
_CLOSING = "\"'”’»›)]}」』）】》〉"
_OPENING = "\"'“‘«‹([{「『（【《〈¿¡-–—*•"
# Possessive, and never from within a run of stops, so that the time is linear in the text.
_END = re.compile(rf"(?<![{_STOPS}])([{_STOPS}]++)([{re.escape(_CLOSING)}]*+)(\s*+)")
_NUMBER = re.compile(r"\d{1,3}|[ivxIVX]{1,4}|[A-Za-z]")
_NEAR = 40  # characters that are looked at on either side of a full stop

# A name follows these, so that a sentence hardly ever ends with one.
_BEFORE_NAMES = """
mr mrs ms mx dr prof st sr jr rev hon gen col lt sgt capt cmdr adm gov sen rep pres supt messrs mme mlle hr fr frl
dipl ing sra srta dna dott mons mgr vs cf resp bzw usw bspw ggf sog evtl inkl zzgl ул г гг стр им
"""
# A number follows these: "No. 7" is one sentence, "No. Not yet." is two.
_BEFORE_NUMBERS = """
no nos nr art abs fig figs eq sec ch vol p pp tel approx ca str núm pág págs рис см
"""
# These close sentences, too: one ends there unless a small letter or a number follows.
_ANYWHERE = """
etc inc ltd co corp plc bros llc gmbh ave blvd rd sq al est dept univ assn eds ed min max misc ext incl excl am pm
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun
т д п руб тыс млн млрд
"""
_TITLES, _NUMBERED, _SHORT = (frozenset(words.split()) for words in (_BEFORE_NAMES, _BEFORE_NUMBERS, _ANYWHERE))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, without blanks around them; of an empty text none."""
    return [sentence for line in text.splitlines() for sentence in _of_line(line)]


def _of_line(line: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(line):
        if _ends(line, start, match):
            if sentence := line[start : match.end()].strip():
                yield sentence
            start = match.end()
    if rest := line[start:].strip():
        yield rest


def _ends(line: str, start: int, match: re.Match[str]) -> bool:
    """Return whether the sentence that begins at `start` ends at this run of full stops."""
    stops, closing, gap = match.groups()
    follows = line[match.end() : match.end() + _NEAR]
    if not follows:
        return True
    if not gap:  # "3.14", "example.com"; quoted speech goes on after its closing mark
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
