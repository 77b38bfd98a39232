"""Detection of the sender of a line in WhatsApp's export, from all lines of the file.

`Ana: hello` has one reading, `Ben:fine: thanks` has two, and `Ana added you to the community: Garden` has no sender,
since WhatsApp's own lines on Android name none. So names are counted first. A name is more credible the more lines
begin with it, and a sentence that begins with a sender's name is about that person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_ft.data.chats.whatsapp_words import MARK, is_about_group

_LONGEST = 100  # characters; WhatsApp allows 25, contacts of a phone are longer
_QUOTES = re.compile('["“”„«»「」『』]')
_SENTENCE = 4  # words in lower case
_SENTENCE_ABOUT = 3  # words in lower case after a sender's name
_FEW = 2  # maximum lines with the same beginning by chance


class Senders:
    """Senders of one file.

    Args:
        bracket: True for a file with heads in brackets (iOS), where every line names a sender.
    """

    def __init__(self, *, bracket: bool) -> None:
        self._bracket = bracket
        self._counts: dict[str, int] = {}

    def add(self, line: str) -> str:
        """Count the name at the beginning of a line and return it, or "" if there is none."""
        spaced, close = _candidates(line.lstrip(MARK))
        name = spaced or close
        if name:
            self._counts[name] = self._counts.get(name, 0) + 1
        return name

    def split(self, line: str) -> tuple[str, str] | None:
        """Return (name, text) of a line, or None if WhatsApp itself wrote it.

        Args:
            line: Line without its head.
        """
        is_marked = line.startswith(MARK)
        line = line.lstrip(MARK)
        spaced, close = _candidates(line)
        name = spaced or close
        if close and self._counts.get(close, 0) >= max(1, self._counts.get(spaced, 0)):
            name = close
        if not name or (not self._bracket and self._is_sentence(name, alone=name == close and not spaced)):
            return None
        if is_marked and len(_QUOTES.findall(name)) % 2:
            return None
        return name, line[len(name) + 1 :].removeprefix(" ")

    def _is_sentence(self, name: str, *, alone: bool) -> bool:
        """Return whether a "name" is the beginning of one of WhatsApp's own lines."""
        count = self._counts.get(name, 0)
        words = name.split()
        small = sum(word[0].islower() for word in words)
        quotes = len(_QUOTES.findall(name))
        if quotes % 2 or (quotes and small >= _FEW):
            return True
        if count > _FEW:
            return False
        if is_about_group(name):
            return True
        if count == 1 and small >= (_FEW if alone else _SENTENCE):
            return True
        plain = sum(word[0].isalpha() and not word[0].isupper() for word in words)  # scripts without capitals count
        return plain >= _SENTENCE_ABOUT and self._names_somebody(words)

    def _names_somebody(self, words: Sequence[str]) -> bool:
        """Return whether the words of a longer name contain a sender's name."""
        ends = range(1, len(words) + 1)
        parts = (" ".join(words[start:end]) for end in ends for start in range(end) if end - start < len(words))
        return any(self._counts.get(part, 0) for part in parts)


def _candidates(line: str) -> tuple[str, str]:
    """Return the names before the first colon with a blank after it and the first without, or "" if there is none.

    Addresses (`https://`) and clock times do not count as names.
    """
    start = line[:_LONGEST] if len(line) > _LONGEST else f"{line} "
    spaced, colon, _ = start.partition(": ")
    spaced = spaced if colon else ""
    close, colon, remainder = start.partition(":")
    if not colon or close == spaced or remainder.startswith("//") or (close[-1:].isdigit() and remainder[:1].isdigit()):
        close = ""
    return spaced, close
