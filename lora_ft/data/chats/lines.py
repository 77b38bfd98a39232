"""`Name: text` lines: how messages stand in a context, and how they are found again in what a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LONGEST_NAME = 64


class Line(NamedTuple):
    """What somebody says; the text may have several lines."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def context_of(lines: Sequence[Line], characters: int) -> str:
    """Lines below each other, in at most so many characters.

    The oldest leave first; where the last alone is too long, the beginning of its text goes.
    """
    kept: list[str] = []
    room = characters
    for line in reversed(lines):
        room -= len(str(line)) + bool(kept)
        if room < 0:
            break
        kept.append(str(line))
    if lines and not kept:
        name, text = lines[-1]
        kept = [str(Line(name, text[max(0, len(str(lines[-1])) - characters) :]))]
    return "\n".join(reversed(kept))


def parse_line(text: str) -> Line | None:
    """The line that a text is, or None where no name stands before it or nothing behind."""
    name, colon, said = text.strip().partition(":")
    plausible = name.strip() and len(name) <= _LONGEST_NAME and "\n" not in name and said[:1].isspace()
    return Line(name.strip(), said.strip()) if colon and plausible and said.strip() else None


def parse_lines(text: str) -> list[Line]:
    """The lines of a text; one without a name goes on with the one before, or is left out where there is none."""
    found: list[Line] = []
    for row in text.splitlines():
        line = parse_line(row)
        if line is not None:
            found.append(line)
        elif found:
            found[-1] = Line(found[-1].name, f"{found[-1].text}\n{row}")
    return [Line(name, said.rstrip()) for name, said in found]
