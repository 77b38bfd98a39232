"""Phrases that training answers share: for a sequence of tokens, the token that most often follows it.

Answers of one task repeat beginnings, formulas and field names, which its sources do not contain. Prompt lookup drafts
them from this table (`decoding.prompt_lookup`). It is part of a bundle only if an export asks for it, since it is text
of the training data.

An entry has a context of 1 to `LENGTH` tokens and needs `LEAST` answers that contain the context with the token after
it, so that no text of fewer answers is in the table. An entry that only repeats that of a shorter context is left out.
The first context of an answer is the start token, so beginnings are entries, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_ft.core.errors import LoraFtError

VERSION = 1  # of the file; another version is ignored, since drafts never change an answer
LENGTH = 6  # longest context, in tokens; with 4, a draft call on FHIR resources yields 5 % fewer tokens
LEAST = 3  # answers that must share an entry
MOST = 2**16  # largest number of entries, 2 MB
_SCALE = 1000  # shares are stored as integers
_SIMILAR = 0.05  # difference of shares from which an entry adds to that of a shorter context

Context = tuple[int, ...]


class Phrases:
    """The likeliest next token by context.

    Args:
        entries: (token, share of the answers with the context that go on with it) by context.
    """

    def __init__(self, entries: Mapping[Context, tuple[int, float]]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def count(cls, answers: Iterable[Sequence[int]], start: int) -> Phrases:
        """Return the table of answers, each a sequence of tokens that the start token precedes."""
        texts = [(start, *answer) for answer in answers]
        ends: list[Sequence[int]] = [range(1, len(text)) for text in texts]
        totals = Counter[Context]((token,) for text in texts for token in set(text))
        entries: dict[Context, tuple[int, float]] = {}
        frequency: dict[Context, int] = {}
        table = cls(entries)
        for length in range(1, LENGTH + 1):
            counts = Counter[Context]()
            for text, places in zip(texts, ends, strict=True):
                counts.update({text[end - length : end + 1] for end in places})
            best: dict[Context, tuple[int, int]] = {}
            for phrase, count in counts.items():
                if count >= LEAST:
                    best[phrase[:-1]] = max(best.get(phrase[:-1], (0, 0)), (count, -phrase[-1]))
            for context, (count, negative) in best.items():
                share = count / (totals[context] + 1)
                shorter = table.find(context[1:])
                if shorter is None or shorter[0] != -negative or abs(shorter[1] - share) >= _SIMILAR:
                    entries[context], frequency[context] = (-negative, share), count
            ends = [  # a longer phrase is at most as frequent as its end
                [end for end in places if end > length and counts[text[end - length : end + 1]] >= LEAST]
                for text, places in zip(texts, ends, strict=True)
            ]
            totals = counts
        kept = sorted(entries, key=lambda context: (-frequency[context], context))[:MOST]
        return cls({context: entries[context] for context in kept})

    def find(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """Return the likeliest next token after these and its share, from the longest known context, or None."""
        for length in range(min(LENGTH, len(tokens)), 0, -1):
            entry = self._entries.get(tuple(tokens[-length:]))
            if entry:
                return entry
        return None

    def write(self, path: Path) -> dict[str, int]:
        """Write the table, and return its entry for a manifest.

        The file is an int32 array [entries, LENGTH + 2]: context, padded with -1 on the left, token, share * 1000.
        """
        rows = [
            (*[-1] * (LENGTH - len(context)), *context, token, round(share * _SCALE))
            for context, (token, share) in self._entries.items()
        ]
        np.save(path, np.array(rows, np.int32).reshape(-1, LENGTH + 2))
        return {"version": VERSION, "entries": len(rows), "least_answers": LEAST}

    @classmethod
    def read(cls, path: Path, vocabulary: int) -> Phrases:
        """Read the table of a bundle.

        Args:
            path: File written by `write`.
            vocabulary: Number of tokens of the model.

        Raises:
            LoraFtError: The file is not such a table.
        """
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, type(error).__name__) from error
        if table.dtype != np.int32 or table.ndim != 2 or table.shape[1] != LENGTH + 2:
            raise _damaged(path, f"{table.dtype} {table.shape}")
        tokens = table[:, :-1]
        if (tokens < -1).any() or (tokens >= vocabulary).any() or (tokens[:, -1] < 0).any():
            raise _damaged(path, f"a token is outside the vocabulary of {vocabulary:,}")
        return cls(
            {
                tuple(token for token in context if token >= 0): (token, share / _SCALE)
                for *context, token, share in table.tolist()
            }
        )


NO_PHRASES = Phrases({})


def _damaged(path: Path, reason: str) -> LoraFtError:
    return LoraFtError(f"{path} is not a table of phrases ({reason})", "export the bundle again")
