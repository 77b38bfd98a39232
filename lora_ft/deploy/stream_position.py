"""What a client has received of a stream, so that another answer to its request can continue it.

Two servers cut the same answer into different events, since an event has the tokens that were ready together. So
answers are compared by their content. The texts, lists and counts of an answer grow from event to event. A position is
the received part of each. The events of the other answer lose that part, and those with nothing else are left out.
"""

from __future__ import annotations

import json
from typing import Any

from lora_ft.core.errors import LoraFtError

Place = tuple[Any, ...]  # an answer of the stream, and the names that lead to a field of its events

_DATA = b"data: "
_DONE = b"data: [DONE]"
_GROWING = ("text", "content", "tokens", "scores", "token_logprobs", "top_logprobs", "text_offset")
_ONCE = ("role", "finish", "finish_reason")


class DifferentAnswer(LoraFtError):
    """The second answer does not begin with the received part of the first."""


class StreamPosition:
    """What a client has received of a stream.

    Attributes:
        events: Number of its events.
    """

    def __init__(self) -> None:
        self.events = 0
        self._received: dict[Place, Any] = {}  # texts, and the lengths of everything else
        self._read: dict[Place, int] = {}  # lengths in the present answer
        self._created: int | None = None
        self._restarted = False

    def restart(self) -> None:
        """Begin with another answer."""
        self._read, self._restarted = {}, True

    def remainder(self, event: bytes) -> bytes:
        """Return the part of an event that the client does not have, as an event, or b"" if it has all.

        Raises:
            DifferentAnswer: The client has something else.
        """
        remainder = self._done(event) if event == _DONE else self._cut(event)
        self.events += bool(remainder)
        return remainder

    def _done(self, event: bytes) -> bytes:
        is_new = bool(self._grow(("done",), 1))
        if any(self._read.get(place, 0) < _length(value) for place, value in self._received.items()):
            raise DifferentAnswer("the second answer is shorter than the first")
        return event if is_new else b""

    def _cut(self, event: bytes) -> bytes:
        content: dict[str, Any] = json.loads(event.removeprefix(_DATA))
        if "error" in content:
            return event
        changed = dict(content)
        if "created" in content:
            self._created = changed["created"] = self._created or content["created"]
        if content.get("choices"):
            [choice] = content["choices"]
            rest, is_new = self._rest((choice["index"],), choice)
            changed["choices"] = [rest]
        elif "row" in content:
            changed, is_new = self._rest((content["row"], content["answer"]), content)
        else:
            is_new = bool(self._grow(("usage",), 1))
        if not is_new and self._restarted:
            return b""
        return event if changed == content else _DATA + json.dumps(changed).encode()

    def _rest(self, place: Place, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Return fields without what the client has, and whether anything is left."""
        rest, is_new = dict(fields), False
        for name, value in fields.items():
            inner = (*place, name)
            if isinstance(value, dict):
                rest[name], is_newer = self._rest(inner, value)
            elif value is not None and name in _GROWING:
                rest[name] = self._grow(inner, value)
                is_newer = bool(rest[name])
            else:
                is_newer = value is not None and name in _ONCE and bool(self._grow(inner, 1))
            is_new = is_new or is_newer
        return rest, is_new

    def _grow(self, place: Place, value: Any) -> Any:
        """Add a text, list or count to a place, and return its part that the client does not have."""
        start = self._read.get(place, 0)
        received = self._received.get(place, "" if isinstance(value, str) else 0)
        length = _length(value)
        self._read[place] = start + length
        overlap = max(0, min(_length(received) - start, length))
        if isinstance(value, str) and value[:overlap] != received[start : start + overlap]:
            raise DifferentAnswer("the second answer differs from the first")
        rest = value - overlap if isinstance(value, int) else value[overlap:]
        self._received[place] = received + (rest if isinstance(value, str) else length - overlap)
        return rest


def _length(value: Any) -> int:
    return value if isinstance(value, int) else len(value)
