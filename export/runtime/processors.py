"""What edits a step's logits before a token is chosen, each as transformers' processor of that name does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.trie import Trie
from lora_ft.export.runtime.io_binding import Edit

# (tokens so far [b, n] with the start token, logits [b, vocabulary], which may be changed) -> logits
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]

_NEVER = -np.inf


def processors(options: Options, special: SpecialTokens) -> list[Processor]:
    """Those that the options ask for, in transformers' order."""
    chosen: list[Processor] = []
    if options.repetition_penalty != 1.0:
        chosen.append(repetition_penalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        chosen.append(no_repeat_ngram(options.no_repeat_ngram_size))
    bad_words = [words for words in options.bad_words_ids if words not in [(end,) for end in special.ends]]
    if bad_words:
        chosen.append(no_bad_words(bad_words))
    if options.min_new_tokens:
        chosen.append(only_while(lambda made: made < options.min_new_tokens, suppress(special.ends)))
    if options.allowed:
        chosen.append(only(Trie(options.allowed, special.end)))
    if options.forced_bos_token_id is not None:
        chosen.append(only_while(lambda made: made == 0, force((options.forced_bos_token_id,))))
    if options.forced_eos_token_id is not None:
        last = options.forced_eos_token_id
        tokens = last if isinstance(last, tuple) else (last,)
        chosen.append(only_while(lambda made: made == options.max_new_tokens - 1, force(tokens)))
    if options.suppress_tokens:
        chosen.append(suppress(options.suppress_tokens))
    if options.begin_suppress_tokens:
        first = 0 if options.forced_bos_token_id is None else 1
        chosen.append(only_while(lambda made: made == first, suppress(options.begin_suppress_tokens)))
    return chosen


def editing(edits: Sequence[Processor], tokens: np.ndarray) -> Edit | None:
    """All of them in turn as one change, in place, of what follows these tokens; None where there are none."""
    if not edits:
        return None

    def change(logits: np.ndarray) -> None:
        made = logits
        for edit in edits:
            made = edit(tokens, made)
        if made is not logits:
            logits[...] = made

    return change


def only_while(condition: Callable[[int], bool], inner: Processor) -> Processor:
    """`inner`, where the count of tokens made so far meets a condition."""
    return lambda tokens, logits: inner(tokens, logits) if condition(tokens.shape[1] - 1) else logits


def suppress(banned: tuple[int, ...]) -> Processor:
    """No token of these."""
    columns = list(banned) if len(banned) > 1 else banned[0]  # numpy finds one column in a sixth of the time

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:, columns] = _NEVER
        return logits

    return process


def only(trie: Trie) -> Processor:
    """No token but those that continue an allowed answer."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        made = np.full_like(logits, _NEVER)
        for said, before, after in zip(tokens.tolist(), logits, made, strict=True):
            kinds = trie.after(said[1:])
            after[kinds] = before[kinds]
        return made

    return process


def force(forced: tuple[int, ...]) -> Processor:
    """One of these tokens, all alike, and no other."""
    columns = list(forced)

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[:] = _NEVER
        logits[:, columns] = 0
        return logits

    return process


def repetition_penalty(penalty: float) -> Processor:
    """Make what was said less likely (arXiv 1909.05858): its logit is divided by the penalty, or multiplied below 0."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        said = np.take_along_axis(logits, tokens, axis=1)
        np.put_along_axis(logits, tokens, np.where(said < 0, said * penalty, said / penalty), axis=1)
        return logits

    return process


def no_repeat_ngram(size: int) -> Processor:
    """No token that would complete a sequence of `size` tokens a second time."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        made = tokens.shape[1]
        if made < size:
            return logits
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)
        last = tokens[:, made - size + 1 :]
        for row, seen, tail in zip(logits, windows, last, strict=True):
            row[seen[(seen[:, :-1] == tail).all(axis=1), -1]] = _NEVER
        return logits

    return process


def no_bad_words(sequences: list[tuple[int, ...]]) -> Processor:
    """None of these sequences of tokens."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        for *prefix, last in sequences:
            if len(prefix) <= tokens.shape[1]:
                begins = (tokens[:, tokens.shape[1] - len(prefix) :] == prefix).all(axis=1)
                logits[begins, last] = _NEVER
        return logits

    return process


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
