"""Scores by slice: the rows that share a length, label, script, column's value, or overlap with training rows."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lora_ft.data.words import UnicodeTokenizer
from lora_ft.evaluation.metrics.statistics import Estimate, estimate

_FEWEST = 5  # rows of a slice; fewer say nothing
_MOST = 20  # slices by one property
_LONGEST = 40  # characters of a column's value
_OVERLAP = {"same": "the prompt is a training prompt", "near": "nearly a training row", "none": "new"}
_Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """Rows that share a property.

    Attributes:
        by: The property, such as "prompt words".
        value: Its value.
        rows: Number of rows.
        score: Mean score of the rows, with its interval.
        differs: Whether the interval excludes the mean of all rows.
    """

    by: str
    value: str
    rows: int
    score: Estimate
    differs: bool


def slices(answers: Sequence[_Answer], score: str, *, seed: int, resamples: int) -> list[Slice]:
    """Return the slices of the answers that have a score. A property is left out unless two values have 5 rows each.

    Args:
        answers: Lines of a predictions file.
        score: Name of the score.
        seed, resamples: Of the bootstrap.
    """
    answers = [answer for answer in answers if answer.get(score) is not None]
    scores = np.array([answer[score] for answer in answers], np.float64)
    parts = []
    for by, values in _properties(answers):
        counts = Counter(values)
        common = sorted(value for value in counts if counts[value] >= _FEWEST)
        if not 2 <= len(common) <= _MOST:
            continue
        for value in common:
            mean = estimate(scores[[other == value for other in values]], seed=seed, resamples=resamples)
            differs = not mean.low <= scores.mean() <= mean.high
            parts.append(Slice(by, value.text, counts[value], mean, differs))
    return parts


def columns_to_slice(rows: Sequence[Mapping[str, Any]], target: str) -> list[str]:
    """Return the columns of a data set with few, short values, in alphabetical order."""

    def is_short(value: object) -> bool:
        return isinstance(value, str | int | bool) and len(str(value)) <= _LONGEST

    shared = set.intersection(*(set(row) for row in rows)) - {target} if rows else set()
    return [
        name
        for name in sorted(shared)
        if all(is_short(row[name]) for row in rows) and 2 <= len({str(row[name]) for row in rows}) <= _MOST
    ]


class _Value(NamedTuple):
    """A value of a property; values are shown in this order."""

    rank: int
    text: str


def _properties(answers: Sequence[_Answer]) -> Iterator[tuple[str, list[_Value]]]:
    """Yield properties and their values [rows]."""
    words = UnicodeTokenizer().tokenize
    references = [answer["references"][0] for answer in answers]
    yield "prompt words", _thirds([len(words(answer["prompt"])) for answer in answers])
    yield "reference words", _thirds([len(words(text)) for text in references])
    for by, texts in _texts(answers, references):
        yield by, [_Value(0, text) for text in texts]


def _texts(answers: Sequence[_Answer], references: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    yield "prompt", ["cut" if answer.get("source_cut") else "whole" for answer in answers]
    yield "answer", ["cut at the limit" if answer.get("cut") else "ended" for answer in answers]
    yield "script", [_script(text) for text in references]
    yield "reference", [" ".join(text.split())[:_LONGEST] for text in references]
    if all("overlap" in answer for answer in answers):
        yield "training rows", [_OVERLAP[answer["overlap"]] for answer in answers]
    for name in (answers[0].get("columns") or {}) if answers else ():
        yield f"column {name}", [str(answer["columns"][name]) for answer in answers]


def _thirds(lengths: Sequence[int]) -> list[_Value]:
    low, high = (int(bound) for bound in np.quantile(lengths or [0], (1 / 3, 2 / 3), method="nearest"))
    thirds = [f"up to {low:,}", f"{low + 1:,} to {high:,}", f"over {high:,}"]
    ranks = [int(length > low) + int(length > high) for length in lengths]
    return [_Value(rank, thirds[rank]) for rank in ranks]


def _script(text: str) -> str:
    """Return the script of most letters of a text, such as "Latin" or "Cyrillic"."""
    counts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0].capitalize() if counts else "none"
