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
    sets = [runs(text) for text in texts]
    often = Counter(chain.from_iterable(sets))
    index: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, text_runs in enumerate(sets):
        for run in _rarest(text_runs, often, alike):
            index[run].append(at)
    duplicates: dict[int, int] = {}
    for at, text in enumerate(pool):
        pool_runs = runs(text)
        if sum(run in often for run in pool_runs) < alike * len(pool_runs):
            continue
        for near in {i for run in _rarest(pool_runs, often, alike) for i in index.get(run, ())} - duplicates.keys():
            if len(sets[near] & pool_runs) >= alike * len(sets[near] | pool_runs):
                duplicates[near] = at
    return duplicates


def runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of three words; a shorter text is one run."""
    words = UnicodeTokenizer().tokenize(text)
    return {tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))} if words else set()


def _rarest(members: set[tuple[str, ...]], often: Counter[tuple[str, ...]], alike: float) -> list[tuple[str, ...]]:
    """Return the rarest runs of a set, enough that any two similar sets share at least one."""
    count = len(members) - math.ceil(alike * len(members) - 1e-9) + 1
    return sorted(members, key=lambda run: (often[run], run))[:count] if members else []
