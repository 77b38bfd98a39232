"""How to generate, by the names and with the defaults of transformers' GenerationConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from lora_ft.core.errors import UsageError

_BANS = (  # what might leave no token of an allowed answer
    "min_new_tokens",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)

BOUNDS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 100_000),
    "min_new_tokens": (0, 100_000),
    "num_beams": (1, 1_000),
    "num_return_sequences": (1, 10_000),
    "length_penalty": (-10.0, 10.0),
    "temperature": (1e-6, 1e6),
    "top_k": (0, 1_000_000),
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "no_repeat_ngram_size": (0, 100_000),
}
"""Least and most of each number. Beyond them a call would not end, fill the memory or compute with infinities."""


@dataclass(frozen=True)
class Options:
    """Options of one generation.

    Attributes:
        max_new_tokens, min_new_tokens: limits of an answer; no </s> before the least.
        num_beams: of beam search; 1 is greedy search or sampling.
        num_return_sequences: answers to each text.
        length_penalty, early_stopping: of beam search.
        do_sample, temperature, top_k, top_p, seed: of sampling; top_k 0 is no limit. Without a seed every call draws
            other tokens. Each batch has its own draws: a tuple of the seed and the batch's number is a seed, too.
        repetition_penalty, no_repeat_ngram_size: against repetition; 1.0 and 0 are none.
        bad_words_ids: token sequences that must not be made.
        suppress_tokens, begin_suppress_tokens: tokens that must not be made, at all or at first.
        forced_bos_token_id, forced_eos_token_id: the first token, the last where the limit is reached.
        allowed: token sequences, the only answers there may be, without </s>; none is no limit.
        prompt_lookup: draft tokens from the source and check them, where greedy search allows it.
        output_scores: also the log-probability of every token (beam search: the score of the answer).

    Raises:
        UsageError: a value is out of its range, or two exclude each other.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | tuple[int, ...] | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    allowed: tuple[tuple[int, ...], ...] = ()
    prompt_lookup: bool = False
    output_scores: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        check_ranges(vars(self))
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens {self.min_new_tokens} and max_new_tokens {self.max_new_tokens} "
                "need 0 <= min <= max, max >= 1"
            )
        if self.early_stopping not in (True, False, "never"):
            raise UsageError(f"early_stopping {self.early_stopping!r} is not true, false or never")
        if self.do_sample and self.num_beams > 1:
            raise UsageError("do_sample and num_beams exclude each other here", "choose sampling or beams")
        if self.num_return_sequences > max(1, self.num_beams) and not self.do_sample:
            raise UsageError(
                f"num_return_sequences {self.num_return_sequences} wants as many beams, or do_sample",
                f"num_beams is {self.num_beams}",
            )
        banned = {*self.suppress_tokens, *(words[0] for words in self.bad_words_ids if len(words) == 1)}
        if banned & set(self._forced):
            raise UsageError("a token is both forced and suppressed", "then none is left to choose")
        if any(not words for words in self.bad_words_ids):
            raise UsageError("bad_words_ids has an empty sequence")
        if self.allowed:
            check_allowed(self.allowed, vars(self))

    def _check_kinds(self) -> None:
        seeds = self.seed if isinstance(self.seed, tuple) else () if self.seed is None else (self.seed,)
        if not all(isinstance(seed, int | np.integer) and not isinstance(seed, bool) for seed in seeds):
            raise UsageError(f"seed is not a whole number (got {self.seed!r})", "give 0 or more")
        if min(seeds, default=0) < 0:
            raise UsageError(f"seed {self.seed} is less than 0")
        for name in ("do_sample", "prompt_lookup", "output_scores"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise UsageError(f"{name} {getattr(self, name)!r} is not true or false")
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if not _are_tokens(getattr(self, name)):
                raise UsageError(f"{name} {getattr(self, name)!r} is not a list of tokens")
        for name in ("bad_words_ids", "allowed"):
            rows = getattr(self, name)
            if not isinstance(rows, tuple) or not all(map(_are_tokens, rows)):
                raise UsageError(f"{name} {rows!r} is not a list of lists of tokens")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            token = getattr(self, name)
            if (
                token is not None
                and not _are_tokens((token,))
                and not (name == "forced_eos_token_id" and token and _are_tokens(token))
            ):
                raise UsageError(f"{name} {token!r} is not a token")

    def check_tokens(self, vocabulary: int) -> None:
        """Raise UsageError where a token is named that the vocabulary does not have."""
        named = [
            *self.suppress_tokens,
            *self.begin_suppress_tokens,
            *self._forced,
            *(t for w in (*self.bad_words_ids, *self.allowed) for t in w),
        ]
        for token in named:
            if not 0 <= token < vocabulary:
                raise UsageError(f"there is no token {token}", f"tokens are 0 to {vocabulary - 1}")

    @property
    def _forced(self) -> tuple[int, ...]:
        """The first and the last token where they are forced."""
        last = self.forced_eos_token_id if isinstance(self.forced_eos_token_id, tuple) else (self.forced_eos_token_id,)
        return tuple(token for token in (self.forced_bos_token_id, *last) if token is not None)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Options from a mapping; lists become tuples, and None is the default.

        Raises:
            UsageError: a name is unknown, or as the class.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(
                f"there is no generation option {', '.join(unknown)}", f"there are {', '.join(sorted(known))}"
            )
        return cls(**{name: _frozen(value) for name, value in values.items() if value is not None})

    @property
    def plain(self) -> bool:
        """Whether each token is simply the most likely one, and nothing else is asked for."""
        forced = self.forced_bos_token_id is not None or self.forced_eos_token_id is not None
        banned = any((self.no_repeat_ngram_size, self.bad_words_ids, self.suppress_tokens, self.begin_suppress_tokens))
        edited = forced or banned or self.repetition_penalty != 1.0 or self.allowed
        return not (edited or self.do_sample or self.output_scores or self.num_beams > 1)


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise UsageError where an option of `BOUNDS` is of another kind or out of its range; None is the default."""
    for name, (least, most) in BOUNDS.items():
        value = values.get(name)
        if value is None:
            continue
        whole = isinstance(least, int)
        if isinstance(value, bool) or not isinstance(value, int | np.integer if whole else int | float | np.number):
            raise UsageError(f"{name} {value!r} is not a {'whole ' if whole else ''}number", f"give {least} to {most}")
        if not least <= value <= most:
            raise UsageError(f"{name} {value!r} is not in {least:g}..{most:g}", f"give {least:g} to {most:,}")


def check_allowed(allowed: Sequence[Sequence[int]], options: Mapping[str, Any]) -> None:
    """Raise UsageError where options would cut an allowed answer, or leave no token of one.

    Args:
        allowed: token sequences without </s>.
        options: by the names of `Options`, max_new_tokens among them; other names and None do not matter.
    """
    if not all(allowed):
        raise UsageError("allowed has an empty sequence")
    longest, limit = 1 + max(map(len, allowed)), options["max_new_tokens"]
    if longest > limit:
        raise UsageError(
            f"max_new_tokens {limit} cuts allowed answers, the longest of which has {longest} tokens", "raise it"
        )
    several, count = options.get("num_return_sequences") or 1, len(set(map(tuple, allowed)))
    if several > count and not options.get("do_sample"):
        raise UsageError(f"num_return_sequences {several} wants as many allowed answers", f"there are {count}")
    for name in _BANS:
        if _frozen(options.get(name)) not in (None, getattr(Options, name)):
            raise UsageError(f"{name} and allowed answers exclude each other", "leave one of them out")


def _are_tokens(value: Any) -> bool:
    """Whether a value is a tuple of whole numbers."""
    return isinstance(value, tuple) and all(
        isinstance(token, int | np.integer) and not isinstance(token, bool) for token in value
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
