"""Rows alone and in company: cases for the property tests, which an emulated processor runs as a program, too.

python -m tests.export.runtime.independence BUNDLE...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.model import Model

ANSWER = 24  # tokens of an answer
_START, _END = 0, 1


@dataclass(frozen=True)
class Case:
    """Rows that are answered together.

    Attributes:
        sources: Length of each row's source, in tokens.
        padding: Tokens of padding after the longest source.
        calls: Tokens per row of each call after the first, of which rows keep different numbers.
        seed: Seed of the tokens.
    """

    sources: Sequence[int]
    padding: int
    calls: Sequence[int]
    seed: int


def differing(model: Model, vocabulary: int, case: Case) -> list[tuple[int, int]]:
    """Return (row, position) of logits whose bits differ from those of the row alone, a token per call."""
    rng = np.random.default_rng(case.seed)
    rows = [np.append(rng.integers(2, vocabulary, length - 1), _END) for length in case.sources]
    answers = rng.integers(2, vocabulary, (len(rows), ANSWER))
    answers[:, 0] = _START
    expected = [_alone(model, row, answer) for row, answer in zip(rows, answers, strict=True)]
    width = max(map(len, rows)) + case.padding
    ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    mask = (np.arange(width) < np.array([[len(row)] for row in rows])).astype(np.int64)
    source, cache = model.encode(ids, mask), model.cache(len(rows))
    places, unequal = np.zeros(len(rows), np.int64), []
    for turn, count in enumerate((1, *case.calls)):
        if places.max() + count > ANSWER:
            break
        positions = places[:, None] + np.arange(count)
        logits = model.logits(source, cache, np.take_along_axis(answers, positions, axis=1))
        kept = 1 + (np.arange(len(rows)) * 3 + turn) % count
        for i, row in enumerate(expected):
            unequal += [(i, int(at)) for j, at in enumerate(positions[i]) if not np.array_equal(logits[i, j], row[at])]
        cache.forget(count - kept)
        places = places + kept
    return unequal


def _alone(model: Model, row: np.ndarray, answer: np.ndarray) -> list[np.ndarray]:
    """Return the logits at each position of an answer, a token per call."""
    source, cache = model.encode(row[None], np.ones((1, len(row)), np.int64)), model.cache(1)
    return [model.logits(source, cache, token.reshape(1, 1))[0, 0] for token in answer]


def _main(folders: Sequence[str]) -> None:
    """Print the first case of each bundle in which a row differs, or that all are equal."""
    for folder in folders:
        generator, rng = Generator.load(folder, threads=1), np.random.default_rng(0)
        for seed in range(3):
            sources = rng.integers(1, 70, rng.integers(1, 5)).tolist()
            case = Case(sources, int(rng.integers(0, 40)), rng.integers(1, 6, 6).tolist(), seed)
            unequal = differing(generator.model, generator.tokenizer.size, case)
            if unequal:
                print(folder, case, unequal)
                break
        else:
            print("equal")


if __name__ == "__main__":
    _main(sys.argv[1:])
