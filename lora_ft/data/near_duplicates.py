"""Texts that are nearly the same: sets of runs of three words, compared by their Jaccard index, without all pairs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from lora_ft.data.words import UnicodeTokenizer

ALIKE = 0.8
_RUN = 3


def near_duplicates(texts: Sequence[str], pool: Iterable[str], *, alike: float = ALIKE) -> dict[int, int]:
    """Index of each text that has a near duplicate in the pool, and the index of the first one there.

    Exact: two sets that are alike share one of their few rarest runs (prefix filtering: Bayardo et al. 2007), so only
    those pairs are compared. The pool is read once and not kept.

    Args:
        texts: to look for.
        pool: to look in.
        alike: Jaccard index from which two texts are nearly the same, above 0.
    """
    wanted = [runs(text) for text in texts]
    often = Counter(chain.from_iterable(wanted))
    index: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, own in enumerate(wanted):
        for run in _rarest(own, often, alike):
            index[run].append(at)
    found: dict[int, int] = {}
    for at, text in enumerate(pool):
        other = runs(text)
        if sum(run in often for run in other) < alike * len(other):
            continue
        for near in {i for run in _rarest(other, often, alike) for i in index.get(run, ())} - found.keys():
            if len(wanted[near] & other) >= alike * len(wanted[near] | other):
                found[near] = at
    return found


def runs(text: str) -> set[tuple[str, ...]]:
    """Runs of three words; all words, where there are fewer."""
    words = UnicodeTokenizer().tokenize(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))} if words else set()


def _rarest(own: set[tuple[str, ...]], often: Counter[tuple[str, ...]], alike: float) -> list[tuple[str, ...]]:
    """So many of a set's runs that any set that is alike shares one of them, if it takes its own the same way."""
    count = len(own) - math.ceil(alike * len(own) - 1e-9) + 1
    return sorted(own, key=lambda run: (often[run], run))[:count] if own else []
