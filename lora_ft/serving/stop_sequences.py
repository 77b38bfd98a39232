"""Texts that end an answer while it is generated.

The end of a piece may be the beginning of a stop text. Such an end is held back until the next piece decides, so that
no part of a stop text is ever sent.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopSequences:
    """Finds the first stop text in an answer that arrives in pieces.

    Attributes:
        stopped: True once a stop text was found; later pieces are not part of the answer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return the text that is certainly part of the answer."""
        if self.stopped or not self._stops:
            return "" if self.stopped else piece
        text = self._held + piece
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        end = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return the text held back when the answer ended."""
        tail, self._held = self._held, ""
        return tail


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
