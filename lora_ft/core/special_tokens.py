"""Special token ids: decoder start, end of an answer, and padding."""

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
        start: First token of the decoder.
        ends: Tokens that end an answer, at least one. Labels end with the first of them.
        pad: Token that pads short rows.
    """

    start: int
    ends: tuple[int, ...]
    pad: int

    @property
    def end(self) -> int:
        """First of the tokens that end an answer."""
        return self.ends[0]

    @classmethod
    def of(cls, config: Mapping[str, Any], vocabulary: int, where: str) -> SpecialTokens:
        """Return the ids of a configuration, with T5's as defaults: </s> is 1, <pad> is 0, the start equals <pad>.

        Args:
            config: Ids by their names in transformers; `eos_token_id` may be a list.
            vocabulary: Size of the vocabulary, in tokens.
            where: File of the configuration, for errors.

        Raises:
            UsageError: An id is not a token of the vocabulary.
        """
        pad = _value(config, PAD, 0)
        ends = _value(config, END, 1)
        several = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
        start = _value(config, START, pad)
        for name, value, tokens in ((PAD, pad, (pad,)), (END, ends, several), (START, start, (start,))):
            if not tokens or not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
                raise UsageError(
                    f"{where}: {name} is not a token of the vocabulary (got {value!r})",
                    f"give an id from 0 to {vocabulary - 1}",
                )
        return cls(start, tuple(dict.fromkeys(several)), pad)

    def closed_by(self, token: int | None) -> SpecialTokens:
        """Return the same tokens with `token` as the first end, or unchanged if it is not an end."""
        if token not in self.ends:
            return self
        return SpecialTokens(self.start, tuple(dict.fromkeys((token, *self.ends))), self.pad)

    def as_config(self) -> dict[str, Any]:
        """Return the ids by their names in transformers."""
        return {START: self.start, END: self.end if len(self.ends) == 1 else list(self.ends), PAD: self.pad}

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        """Return a mask of the tokens that end an answer: bool, with the shape of `tokens`."""
        return tokens == self.ends[0] if len(self.ends) == 1 else np.isin(tokens, self.ends)

    def trim(self, tokens: np.ndarray) -> np.ndarray:
        """Return a row's tokens up to and including the first end."""
        places = np.flatnonzero(self.ended(tokens))
        return tokens[: places[0] + 1] if len(places) else tokens


def _value(config: Mapping[str, Any], name: str, default: int) -> Any:
    value = config.get(name)
    return default if value is None else value
