"""How much of an answer is copied from its source: coverage, density and novel n-grams.

Coverage and density are those of Grusky et al. (2018, "Newsroom", doi:10.18653/v1/N18-1065). The extractive fragments
of an answer are its longest word sequences that also occur in the source, read from left to right. Coverage is the
share of words inside fragments. Density is the mean length of the fragment that a word belongs to, in words. Novel
n-grams are the share of an answer's distinct n-grams that the source lacks (See et al. 2017, doi:10.18653/v1/P17-1099).

None of them is better when higher: compare them with those of the references, which the signature has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.data.words import UnicodeTokenizer
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.metric_names import SCORES_OF

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

_SCORES = SCORES_OF["extractiveness"]


def measure(
    answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate, sources: Sequence[str]
) -> dict[str, Scored]:
    """Return the scores of each answer by its source; the first reference of each row is measured for comparison."""
    words = UnicodeTokenizer().tokenize
    texts = [words(source) for source in sources]
    scores = _scores([words(answer) for answer in answers], texts)
    expected = _scores([words(reference[0]) for reference in references], texts)
    means = ", ".join(f"{name} {Scored.mean(rows).value:.1f}" for name, rows in expected.items())
    return {name: Scored.mean(rows, f"Unicode words; references: {means}") for name, rows in scores.items()}


def fragments(answer: Sequence[str], source: Sequence[str]) -> list[int]:
    """Return the lengths of the extractive fragments of an answer, in words and in order."""
    places = defaultdict[str, list[int]](list)
    for place, word in enumerate(source):
        places[word].append(place)
    lengths, start = list[int](), 0
    while start < len(answer):
        longest = max((_shared(answer, start, source, place) for place in places[answer[start]]), default=0)
        lengths += [longest] if longest else []
        start += longest or 1
    return lengths


def novel(answer: Sequence[str], source: Sequence[str], n: int) -> float:
    """Return the share of an answer's distinct n-grams that a source lacks, or NaN if the answer has no n-gram."""
    grams = _ngrams(answer, n)
    return len(grams - _ngrams(source, n)) / len(grams) if grams else np.nan


def _scores(answers: Sequence[Sequence[str]], sources: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Return each score [rows]. An empty answer copies nothing. Novel n-grams are NaN for an answer without n-grams.

    If no answer has n-grams, none of them is novel, and all rows are 0.
    """
    rows = []
    for answer, source in zip(answers, sources, strict=True):
        lengths, count = fragments(answer, source), max(1, len(answer))
        copied = [100 * sum(lengths) / count, sum(length**2 for length in lengths) / count]
        rows.append([*copied, *(100 * novel(answer, source, n) for n in (1, 2, 3))])
    columns = np.array(rows).reshape(-1, len(_SCORES)).T
    return {
        name: column if np.isfinite(column).any() else np.zeros(len(column))
        for name, column in zip(_SCORES, columns, strict=True)
    }


def _shared(answer: Sequence[str], start: int, source: Sequence[str], place: int) -> int:
    length = 0
    while start + length < len(answer) and place + length < len(source):
        if answer[start + length] != source[place + length]:
            break
        length += 1
    return length


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[i:] for i in range(n)), strict=False))
