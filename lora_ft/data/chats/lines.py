"""`Name: text` lines: the form of messages in a context, and the parser of such lines in a model's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LONGEST_NAME = 64


class Line(NamedTuple):
    """Message of one person. The text may have several lines."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def context_of(lines: Sequence[Line], characters: int) -> str:
    """Return lines joined by newlines, in at most `characters` characters.

    The oldest lines are dropped first. If the last line alone is too long, the beginning of its text is cut off.
    """
    newest: list[str] = []
    room = characters
    for line in reversed(lines):
        room -= len(str(line)) + bool(newest)
        if room < 0:
            break
        newest.append(str(line))
    if lines and not newest:
        name, text = lines[-1]
        newest = [str(Line(name, text[max(0, len(str(lines[-1])) - characters) :]))]
    return "\n".join(reversed(newest))


def parse_line(text: str) -> Line | None:
    """Return a text as a line, or None if the name before the colon or the text after it is missing."""
    name, colon, content = text.strip().partition(":")
    plausible = name.strip() and len(name) <= _LONGEST_NAME and "\n" not in name and content[:1].isspace()
    return Line(name.strip(), content.strip()) if colon and plausible and content.strip() else None


def parse_lines(text: str) -> list[Line]:
    """Return the lines of a text. A line without a name continues the line before, or is dropped if it is the first."""
    lines: list[Line] = []
    for row in text.splitlines():
        line = parse_line(row)
        if line is not None:
            lines.append(line)
        elif lines:
            lines[-1] = Line(lines[-1].name, f"{lines[-1].text}\n{row}")
    return [Line(name, content.rstrip()) for name, content in lines]
