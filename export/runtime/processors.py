"""Edits of a step's logits before the next token is chosen, equivalent to transformers' logits processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.core.constraint import Constraint, Rows
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.trie import Trie, trie_of
from lora_ft.export.runtime.io_binding import Edit

# (tokens so far [b, n] with the start token, logits [b, vocabulary], which may be changed in place) -> logits
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]

_NEVER = -np.inf


def processors(options: Options, special: SpecialTokens) -> list[Processor]:
    """Return the processors that the options require, in transformers' order."""
    edits: list[Processor] = []
    if options.repetition_penalty != 1.0:
        edits.append(repetition_penalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        edits.append(no_repeat_ngram(options.no_repeat_ngram_size))
    bad_words = [words for words in options.bad_words_ids if words not in [(end,) for end in special.ends]]
    if bad_words:
        edits.append(no_bad_words(bad_words))
    if options.min_new_tokens:
        edits.append(only_while(lambda count: count < options.min_new_tokens, suppress(special.ends)))
    if options.allowed:
        edits.append(only(trie_of(options.allowed, special.end)))
    if options.constraint:
        edits.append(only_valid(options.constraint, special))
    if options.forced_bos_token_id is not None:
        edits.append(only_while(lambda count: count == 0, force((options.forced_bos_token_id,))))
    if options.forced_eos_token_id is not None:
        last = options.forced_eos_token_id
        tokens = last if isinstance(last, tuple) else (last,)
        edits.append(only_while(lambda count: count == options.max_new_tokens - 1, force(tokens)))
    if options.suppress_tokens:
        edits.append(suppress(options.suppress_tokens))
    if options.begin_suppress_tokens:
        first = 0 if options.forced_bos_token_id is None else 1
        edits.append(only_while(lambda count: count == first, suppress(options.begin_suppress_tokens)))
    return edits


def editing(edits: Sequence[Processor], tokens: np.ndarray) -> Edit | None:
    """Return one in-place edit that applies all edits to the logits after `tokens`, or None without edits."""
    if not edits:
        return None

    def change(logits: np.ndarray) -> None:
        edited = logits
        for edit in edits:
            edited = edit(tokens, edited)
        if edited is not logits:
            logits[...] = edited

    return change


def only_while(condition: Callable[[int], bool], inner: Processor) -> Processor:
    """Return a processor that applies `inner` only while `condition(number of new tokens)` holds."""
    return lambda tokens, logits: inner(tokens, logits) if condition(tokens.shape[1] - 1) else logits


def suppress(banned: tuple[int, ...]) -> Processor:
    """Return a processor that forbids these tokens."""
    columns = list(banned) if len(banned) > 1 else banned[0]  # a scalar index is six times as fast in numpy

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:, columns] = _NEVER
        return logits

    return process


def only(trie: Trie) -> Processor:
    """Return a processor that forbids tokens unless they continue an allowed answer."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        allowed = np.full_like(logits, _NEVER)
        for prefix, before, after in zip(tokens.tolist(), logits, allowed, strict=True):
            kinds = trie.after(prefix[1:])
            after[kinds] = before[kinds]
        return allowed

    return process


def only_valid(constraint: Constraint, special: SpecialTokens) -> Processor:
    """Return a processor that forbids tokens unless they continue a valid answer. It is for one batch, step by step."""
    rows, others = Rows(constraint), [end for end in special.ends if end != constraint.end]

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        allowed = rows.allowed(tokens, logits.shape[1])
        if others:
            allowed[:, others] = allowed[:, constraint.end, None]
        logits[~allowed] = _NEVER
        return logits

    return process


def force(forced: tuple[int, ...]) -> Processor:
    """Return a processor that forces the next token to be one of these, all equally likely."""
    columns = list(forced)

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:] = _NEVER
        logits[:, columns] = 0
        return logits

    return process


def repetition_penalty(penalty: float) -> Processor:
    """Return a processor that makes earlier tokens less likely (arXiv 1909.05858).

    Positive logits are divided by the penalty, and negative logits are multiplied by it.
    """

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        earlier = np.take_along_axis(logits, tokens, axis=1)
        np.put_along_axis(logits, tokens, np.where(earlier < 0, earlier * penalty, earlier / penalty), axis=1)
        return logits

    return process


def no_repeat_ngram(size: int) -> Processor:
    """Return a processor that forbids tokens that would repeat an earlier sequence of `size` tokens."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        begins = tokens.shape[1] - size + 1  # places where an earlier sequence may begin
        if begins < 1:
            return logits
        repeats = np.ones((len(tokens), begins), bool)
        for i in range(size - 1):
            repeats &= tokens[:, i : begins + i] == tokens[:, begins + i, None]
        rows, places = repeats.nonzero()
        logits[rows, tokens[rows, places + size - 1]] = _NEVER
        return logits

    return process


def no_bad_words(sequences: list[tuple[int, ...]]) -> Processor:
    """Return a processor that forbids these sequences of tokens, those of one length at once: lists have thousands."""
    lengths = sorted({len(sequence) for sequence in sequences})
    groups = [np.array([sequence for sequence in sequences if len(sequence) == length]) for length in lengths]

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        for group in groups:
            prefixes, lasts = group[:, :-1], group[:, -1]
            begin = tokens.shape[1] - prefixes.shape[1]
            if begin >= 0:
                rows, places = (tokens[:, None, begin:] == prefixes).all(axis=2).nonzero()
                logits[rows, lasts[places]] = _NEVER
        return logits

    return process


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
