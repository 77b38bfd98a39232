"""Text of unknown origin, made safe to print.

Column names, rows, tensor names and answers come from files of strangers. An escape sequence in one can recolor, clear
or retitle a terminal, and a direction override can show a name backwards. Every such character is printed as its code.
"""

from __future__ import annotations

import re

# Control characters but tab and newline, the separators that some terminals break lines at, direction overrides, and
# halves of characters that no encoding can write. Direction marks stay: Arabic and Hebrew need them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with each unsafe character as its JSON escape: ESC becomes `\\u001b`."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
