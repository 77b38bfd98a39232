"""Beam search that makes the same decisions as transformers' `_beam_search`, for each source separately.

If the beams of a source can no longer improve, transformers freezes it until all sources are done. Here the source
leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.runtime.decoding.calls import Decoding, Keep, Likeliest
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.processors import editing, processors

_WORST = np.float32(-1e9)


def search(ids: Sequence[np.ndarray], options: Options, special: SpecialTokens) -> Decoding:
    """Yield the best `num_return_sequences` answers to each source from a search with `num_beams` beams."""
    beams = options.num_beams
    edits = processors(options, special)
    candidates = (1 + len(special.ends)) * beams  # enough to continue every beam, even if all that can end do end
    numbers = np.arange(len(ids))
    running = np.full((len(ids), beams, 1), special.start)
    scores = np.zeros((len(ids), beams), np.float32)
    scores[:, 1:] = _WORST  # all beams start identical, so only the first may continue
    finished = _Finished.none(len(ids), options, special)
    while True:
        length = running.shape[2] - 1
        tokens_so_far = running.reshape(-1, length + 1)
        log_probs, tokens = yield Likeliest(tokens_so_far[:, -1:], candidates, after=editing(edits, tokens_so_far))
        total = log_probs.reshape(len(numbers), -1) + np.repeat(scores, log_probs.shape[1], axis=1)
        best = _top(total, candidates)
        total = _of(total, best)
        parent, token = best // log_probs.shape[1], _of(tokens.reshape(len(numbers), -1), best)
        ended = special.ended(token) | (length + 1 == options.max_new_tokens)
        if ended.any():
            extended = np.concatenate([_of(running, parent), token[..., None]], axis=2)
            open_total = total + ended * _WORST
            going_on = _top(open_total, beams)
            finished.add(extended, total, ended)
            running, scores, parent = (_of(values, going_on) for values in (extended, open_total, parent))
        else:  # nothing ended, so the best candidates continue
            parent, scores = parent[:, :beams], total[:, :beams]
            running = np.concatenate([_of(running, parent), token[:, :beams, None]], axis=2)
        row_count, active = len(tokens_so_far), None
        going = finished.may_improve(scores[:, 0], length + 1) & ~ended.all(axis=1)
        origin = parent + beams * np.arange(len(numbers))[:, None]
        if not going.all():
            for row in np.flatnonzero(~going):
                for rank in range(options.num_return_sequences):
                    answer = int(numbers[row]) * options.num_return_sequences + rank
                    whole = special.trim(finished.tokens[row, rank, 1:])
                    yield TokenChunk(answer, whole, finished.scores[row, rank, None])
            active = np.flatnonzero(going)
            if not len(active):
                return
            numbers, running, scores, finished = numbers[active], running[active], scores[active], finished.of(active)
            origin = origin[active]
        if not np.array_equal(order := origin.reshape(-1), np.arange(row_count)):
            yield Keep(order, sources=active)


class _Finished:
    """The best `num_beams` finished answers of each source, with length-penalized scores."""

    def __init__(self, options: Options, tokens: np.ndarray, scores: np.ndarray, real: np.ndarray, hope: np.ndarray):
        self._options = options
        self.tokens = tokens  # [b, beams, max_new_tokens + 1]
        self.scores = scores  # [b, beams]
        self._real = real  # [b, beams]: False for placeholders
        self._hope = hope  # [b]: True while a running beam may beat the worst finished answer

    @classmethod
    def none(cls, rows: int, options: Options, special: SpecialTokens) -> _Finished:
        shape = rows, options.num_beams
        tokens = np.full((*shape, options.max_new_tokens + 1), special.pad)
        return cls(options, tokens, np.full(shape, _WORST), np.zeros(shape, bool), np.ones(rows, bool))

    def of(self, rows: np.ndarray) -> _Finished:
        return _Finished(self._options, self.tokens[rows], self.scores[rows], self._real[rows], self._hope[rows])

    def add(self, extended: np.ndarray, total: np.ndarray, ended: np.ndarray) -> None:
        """Add the candidates [b, candidates] that ended in this step and rank among the first `num_beams`."""
        beams, length = self._options.num_beams, extended.shape[2] - 1
        just = ended & (np.arange(ended.shape[1]) < beams)
        if not just.any():
            return
        full = self._real.all(axis=1, keepdims=True) & (self._options.early_stopping is True)
        score = total / np.float32(length**self._options.length_penalty)
        score = score + full * _WORST + ~self._hope[:, None] * _WORST + ~just * _WORST
        filled = np.full((*ended.shape, self.tokens.shape[2]), 0)
        filled[:, :, : extended.shape[2]] = extended
        merged = np.concatenate([self.scores, score], axis=1)
        best = _top(merged, beams)
        self.tokens = _of(np.concatenate([self.tokens, filled], axis=1), best)
        self.scores = _of(merged, best)
        self._real = _of(np.concatenate([self._real, just], axis=1), best)

    def may_improve(self, running: np.ndarray, count: int) -> np.ndarray:
        """Return a mask [b] of the sources to continue, from their best running scores [b] after `count` tokens."""
        o = self._options
        length = o.max_new_tokens if o.early_stopping == "never" and o.length_penalty > 0 else count
        best = running / np.float32(length**o.length_penalty)
        if not self._real.any():
            self._hope = self._hope & (best > _WORST)
            return self._hope
        worst = np.where(self._real, self.scores.min(axis=1, keepdims=True), _WORST)
        self._hope = self._hope & (best[:, None] > worst).any(axis=1)
        return self._hope & ~(self._real.all(axis=1) & (o.early_stopping is True))


def _of(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values at `places` [b, k], from [b, n] or [b, n, t] to [b, k] or [b, k, t]."""
    return values[np.arange(len(values))[:, None], places]


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places [b, count] of the largest values [b, n], in descending order."""
    return np.argsort(-values, axis=1, kind="stable")[:, :count]
