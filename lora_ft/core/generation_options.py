"""Options of generation, with the names and defaults of transformers' GenerationConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lora_ft.core.consensus import UTILITIES
from lora_ft.core.errors import UsageError

if TYPE_CHECKING:
    from lora_ft.core.constraint import Constraint

_BANS = (  # options that might leave no token of an allowed answer
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
    "mbr": (0, 1_000),
    "length_penalty": (-10.0, 10.0),
    "temperature": (1e-6, 1e6),
    "top_k": (0, 1_000_000),
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "no_repeat_ngram_size": (0, 100_000),
}
"""Minimum and maximum of each number. Other values would run forever, exhaust memory, or overflow to infinity."""


@dataclass(frozen=True)
class Options:
    """Options of one generation.

    Attributes:
        max_new_tokens, min_new_tokens: Maximum and minimum answer length, in tokens; no </s> before the minimum.
        num_beams: Beams of beam search; 1 is greedy search or sampling.
        num_return_sequences: Answers to each text.
        length_penalty, early_stopping: Settings of beam search.
        do_sample, temperature, top_k, top_p, seed: Settings of sampling; top_k=0 is no limit. Without a seed, every
            call draws other tokens. A seed may also be a tuple of the seed and the batch's number, so that each batch
            draws its own tokens.
        mbr, utility: Sample this many answers and return the one with the highest mean utility against the others
            (`lora_ft.core.consensus`); 0 and 1 return one sample.
        repetition_penalty, no_repeat_ngram_size: Settings against repetition; 1.0 and 0 disable them.
        bad_words_ids: Token sequences that are never generated.
        suppress_tokens, begin_suppress_tokens: Tokens that are never generated, and never as the first token.
        forced_bos_token_id, forced_eos_token_id: Forced first token, and forced last token if the limit is reached.
        allowed: Token sequences without </s> that are the only allowed answers; empty for no restriction.
        constraint: Answers that are valid under a JSON schema, as the only allowed ones; None for no restriction.
        prompt_lookup: Draft tokens from the source and verify them, if greedy search allows it.
        output_scores: Return the log-probability of every token, too (beam search: the score of the answer).

    Raises:
        UsageError: A value is out of its range, or two options exclude each other.
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
    mbr: int = 0
    utility: str = "rouge1"
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    allowed: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    prompt_lookup: bool = False
    output_scores: bool = False

    def __post_init__(self) -> None:
        self._check_kinds()
        check_ranges(vars(self))
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens = {self.max_new_tokens}",
                "lower min_new_tokens or raise max_new_tokens",
            )
        if self.early_stopping not in (True, False, "never"):
            raise UsageError(f"early_stopping {self.early_stopping!r} is not true, false or never")
        if self.do_sample and self.num_beams > 1:
            raise UsageError("do_sample and num_beams exclude each other", "choose sampling or beams")
        if self.num_return_sequences > max(1, self.num_beams) and not self.do_sample:
            raise UsageError(
                f"num_return_sequences={self.num_return_sequences} requires as many beams (got {self.num_beams})",
                "raise num_beams, or set do_sample=true",
            )
        if self.mbr > 1 and self.do_sample and self.num_return_sequences > 1:
            raise UsageError("mbr and num_return_sequences exclude each other", "leave one of them out")
        if self.utility not in UTILITIES:
            raise UsageError(f"unknown utility {self.utility!r}", f"use one of {', '.join(UTILITIES)}")
        banned = {*self.suppress_tokens, *(words[0] for words in self.bad_words_ids if len(words) == 1)}
        if banned & set(self._forced):
            raise UsageError("a token is both forced and suppressed", "remove it from one of the two options")
        if any(not words for words in self.bad_words_ids):
            raise UsageError("bad_words_ids has an empty sequence")
        if self.allowed:
            check_allowed(self.allowed, vars(self))
        if self.constraint:
            if self.allowed:
                raise UsageError("labels and json_schema exclude each other", "leave one of them out")
            _check_bans("json_schema", vars(self))

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
        """Raise UsageError if an option names a token outside the vocabulary."""
        named = [
            *self.suppress_tokens,
            *self.begin_suppress_tokens,
            *self._forced,
            *(t for w in (*self.bad_words_ids, *self.allowed) for t in w),
        ]
        for token in named:
            if not 0 <= token < vocabulary:
                raise UsageError(f"token {token} is not in the vocabulary", f"use tokens from 0 to {vocabulary - 1}")

    @property
    def _forced(self) -> tuple[int, ...]:
        """Forced first and last tokens, if any."""
        last = self.forced_eos_token_id if isinstance(self.forced_eos_token_id, tuple) else (self.forced_eos_token_id,)
        return tuple(token for token in (self.forced_bos_token_id, *last) if token is not None)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Return options from a mapping. Lists become tuples, and None means the default.

        Raises:
            UsageError: A name is unknown, a value is out of its range, or two options exclude each other.
        """
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise UsageError(
                f"unknown generation option {', '.join(unknown)}", f"use one of {', '.join(sorted(names))}"
            )
        return cls(**{name: _frozen(value) for name, value in values.items() if value is not None})

    @property
    def plain(self) -> bool:
        """True if every token is simply the most likely one and no scores are returned."""
        forced = self.forced_bos_token_id is not None or self.forced_eos_token_id is not None
        banned = any((self.no_repeat_ngram_size, self.bad_words_ids, self.suppress_tokens, self.begin_suppress_tokens))
        edited = forced or banned or self.repetition_penalty != 1.0 or self.allowed or self.constraint
        return not (edited or self.do_sample or self.output_scores or self.num_beams > 1)


def overridden(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call above those of its model; None means the model's.

    `do_sample: false` in a call turns sampling off, and so leaves the model's options of sampling unused.

    Raises:
        UsageError: An option of the call has an effect only with sampling, and nothing turns sampling on.
    """
    own = {name: value for name, value in options.items() if value is not None}
    if not defaults.get("do_sample") and "do_sample" not in own:
        for name in sampling_options(own):
            if own[name] != defaults.get(name):
                raise UsageError(
                    f"{name} has no effect without sampling (got {name}={own[name]})",
                    f"set do_sample=true, or leave {name} out",
                )
    return {**defaults, **own}


def sampling_options(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the options that change answers only with sampling."""
    neutral = {"mbr": (0, 1), "temperature": (1.0,), "top_k": (50,), "top_p": (1.0,)}
    return [name for name, unchanged in neutral.items() if values.get(name) not in (None, *unchanged)]


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise UsageError if an option in `BOUNDS` has the wrong type or is out of range. None means the default."""
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
    """Raise UsageError if options would truncate an allowed answer or leave no token of one.

    Args:
        allowed: Token sequences without </s>.
        options: Options by the names of `Options`, including max_new_tokens. Other names and None are ignored.
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
        raise UsageError(
            f"num_return_sequences={several} requires as many allowed answers (got {count})",
            "lower num_return_sequences",
        )
    _check_bans("allowed answers", options)


def _check_bans(restriction: str, options: Mapping[str, Any]) -> None:
    for name in _BANS:
        if _frozen(options.get(name)) not in (None, getattr(Options, name)):
            raise UsageError(f"{name} and {restriction} exclude each other", "leave one of them out")


def _are_tokens(value: Any) -> bool:
    """Return True if a value is a tuple of integers."""
    return isinstance(value, tuple) and all(
        isinstance(token, int | np.integer) and not isinstance(token, bool) for token in value
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
