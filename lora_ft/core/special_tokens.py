"""Token ids with a meaning of their own: what starts the decoder, what ends an answer, what fills up rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_ft.core.errors import UsageError

SPECIAL = START, END, PAD = "decoder_start_token_id", "eos_token_id", "pad_token_id"


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of one model.

    Attributes:
        start: The decoder's first token.
        ends: Tokens that end an answer, at least one. The first is the one that labels close with.
        pad: What fills up short rows.
    """

    start: int
    ends: tuple[int, ...]
    pad: int

    @property
    def end(self) -> int:
        """The first of the tokens that end an answer."""
        return self.ends[0]

    @classmethod
    def of(cls, config: Mapping[str, Any], vocabulary: int, where: str) -> SpecialTokens:
        """Return the ids that a configuration names; where it names none, T5's: </s> is 1, <pad> is 0 and the start.

        Args:
            config: transformers' names and ids; `eos_token_id` may be a list.
            vocabulary: Size of the vocabulary, in tokens.
            where: File that the configuration is from, for errors.

        Raises:
            UsageError: An id is no token of the vocabulary.
        """
        pad = _given(config, PAD, 0)
        ends = _given(config, END, 1)
        several = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
        start = _given(config, START, pad)
        for name, value, tokens in ((PAD, pad, (pad,)), (END, ends, several), (START, start, (start,))):
            if not tokens or not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
                raise UsageError(
                    f"{where}: {name} is not a token of the vocabulary (got {value!r})",
                    f"give an id from 0 to {vocabulary - 1}",
                )
        return cls(start, tuple(dict.fromkeys(several)), pad)

    def closed_by(self, token: int | None) -> SpecialTokens:
        """Return the same tokens with `token` as the first end, if it is one."""
        if token not in self.ends:
            return self
        return SpecialTokens(self.start, tuple(dict.fromkeys((token, *self.ends))), self.pad)

    def as_config(self) -> dict[str, Any]:
        """Return the ids by transformers' names."""
        return {START: self.start, END: self.end if len(self.ends) == 1 else list(self.ends), PAD: self.pad}

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        """Return which tokens end an answer: bool, of the shape of `tokens`."""
        return tokens == self.ends[0] if len(self.ends) == 1 else np.isin(tokens, self.ends)

    def trim(self, tokens: np.ndarray) -> np.ndarray:
        """Return a row's tokens up to and including the first end."""
        places = np.flatnonzero(self.ended(tokens))
        return tokens[: places[0] + 1] if len(places) else tokens


def _given(config: Mapping[str, Any], name: str, default: int) -> Any:
    value = config.get(name)
    return default if value is None else value
