"""Find near duplicates: texts whose sets of three-word runs have a high Jaccard index.

Most pairs are never compared. Two similar sets must share one of their rarest runs, so an index of rare runs yields all
candidates (prefix filtering: Bayardo et al. 2007). The result is exact.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from lora_ft.data.words import UnicodeTokenizer

ALIKE = 0.8
_RUN = 3


def near_duplicates(texts: Sequence[str], pool: Iterable[str], *, alike: float = ALIKE) -> dict[int, int]:
    """Return the index of each text with a near duplicate in the pool, mapped to that duplicate's index.

    If a text has several, the first one in the pool is returned. The pool is read once and not kept.

    Args:
        texts: Texts to look for.
        pool: Texts to search.
        alike: Lowest Jaccard index of near duplicates, above 0.
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
    """Return the runs of three words; a shorter text is one run."""
    words = UnicodeTokenizer().tokenize(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))} if words else set()


def _rarest(own: set[tuple[str, ...]], often: Counter[tuple[str, ...]], alike: float) -> list[tuple[str, ...]]:
    """Return the rarest runs of a set, enough that any two similar sets share one of them."""
    count = len(own) - math.ceil(alike * len(own) - 1e-9) + 1
    return sorted(own, key=lambda run: (often[run], run))[:count] if own else []
