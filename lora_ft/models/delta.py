"""The text of an answer that grows token by token, and the pieces in which it is handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.decoding.types import TokenChunk


@dataclass(frozen=True)
class Delta:
    """The next piece of one answer.

    Attributes:
        answer: Number of the answer, 0 to num_return_sequences - 1.
        text: New text. It may be empty, since a character can have several tokens.
        tokens: New tokens, with </s> if the answer ended.
        scores: Their log-probabilities with output_scores=True, or the answer's score for beams; else None.
        finish: In the last piece of an answer: "stop" if it ended with </s>, "length" if the limit cut it; else None.
        offsets: Length of the answer's text before each new token, in characters.
    """

    answer: int
    text: str
    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    finish: Literal["stop", "length"] | None = None
    offsets: tuple[int, ...] = ()

    def __add__(self, later: Delta) -> Delta:
        """Return this piece and the next one of the same answer as one."""
        return Delta(
            self.answer,
            self.text + later.text,
            self.tokens + later.tokens,
            None if self.scores is None else self.scores + (later.scores or ()),
            later.finish,
            self.offsets + later.offsets,
        )


class GrowingAnswer:
    """One answer as it grows.

    Attributes:
        tokens: Tokens so far.
        whole: Text of the complete answer.
        finish: See `Delta.finish`.
    """

    def __init__(self, number: int, tokenizer: Tokenizer, ends: Sequence[int]) -> None:
        self._number, self._tokenizer, self._ends = number, tokenizer, ends
        self._detokenize: Callable[[int], str] = tokenizer.stream()
        self._sent = self.whole = ""
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None

    def add(self, chunk: TokenChunk) -> Delta:
        """Append tokens, and return what they add."""
        tokens, offsets, begin = chunk.tokens.tolist(), list[int](), len(self._sent)
        for token in tokens:
            offsets.append(len(self._sent))
            self._sent += self._detokenize(token)
        self.tokens += tokens
        text = self._sent[begin:]
        if tokens and tokens[-1] in self._ends:
            text += self._finish("stop")
        scores = None if chunk.scores is None else tuple(chunk.scores.tolist())
        return Delta(self._number, text, tuple(tokens), scores, self.finish, tuple(offsets))

    def end(self) -> Delta:
        """Return the last piece of an answer that the limit cut: text that waited for further tokens."""
        return Delta(self._number, self._finish("length"), (), None, self.finish)

    def _finish(self, reason: Literal["stop", "length"]) -> str:
        """Complete the answer, and return what of its text has not been sent."""
        self.finish = reason
        (self.whole,) = self._tokenizer.decode([self.tokens])
        return self.whole[len(self._sent) :] if self.whole.startswith(self._sent) else ""
