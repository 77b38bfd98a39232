"""Which tokens may come next where only certain answers are allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Trie:
    """The allowed answers, by what each of their beginnings may be followed by.

    Args:
        answers: sequences of tokens without </s>.
        end: </s>, which closes each.
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
        """Tokens that may follow these, in rising order; </s> where they begin no answer, or end one."""
        return self._after.get(tuple(prefix), [self._end])

    def forced(self, prefix: Iterable[int]) -> list[int]:
        """Tokens that must follow these, one after the other, until there is a choice again or the answer ends."""
        said = list(prefix)
        start = len(said)
        while (not said or said[-1] != self._end) and len(following := self.after(said)) == 1:
            said += following
        return said[start:]
