"""Form of names and labels in which those that look alike are equal."""

from __future__ import annotations

import unicodedata


def normal_form(text: str) -> str:
    """Return a name or label without differences of blanks and of Unicode's forms, which nobody sees."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
