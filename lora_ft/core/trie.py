"""Tokens that may come next if only certain answers are allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Trie:
    """Prefix tree of the allowed answers: the tokens that may follow each prefix.

    Args:
        answers: Allowed token sequences, without </s>.
        end: Token that ends each answer (</s>).
    """

    def __init__(self, answers: Iterable[Sequence[int]], end: int) -> None:
        after: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            whole = (*answer, end)
            for i, token in enumerate(whole):
                after.setdefault(whole[:i], set()).add(token)
        self._after = {prefix: sorted(tokens) for prefix, tokens in after.items()}
        self._end = end

    def after(self, prefix: Iterable[int]) -> list[int]:
        """Return the tokens that may follow a prefix, ascending; </s> if it begins no answer or completes one."""
        return self._after.get(tuple(prefix), [self._end])

    def forced(self, prefix: Iterable[int]) -> list[int]:
        """Return the tokens that must follow a prefix, up to the next choice or the end of the answer."""
        tokens = list(prefix)
        start = len(tokens)
        while (not tokens or tokens[-1] != self._end) and len(following := self.after(tokens)) == 1:
            tokens += following
        return tokens[start:]
