"""Escaping of untrusted text for printing.

Column names, rows, tensor names and answers come from untrusted files. An escape sequence in them can recolor, clear or
retitle a terminal, and a direction override can show a name backwards. Every such character is printed as its code.
"""

from __future__ import annotations

import re

# Control characters except tab and newline, separators at which some terminals break lines, direction overrides, and
# lone surrogates, which no encoding can write. Direction marks stay, since Arabic and Hebrew need them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """Replace each unsafe character with its JSON escape: ESC becomes `\\u001b`."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
