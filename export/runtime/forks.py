"""What a forked child must begin again: the threads of its parent are not there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Threaded(Protocol):
    """Something with threads of its own."""

    def begin_again(self) -> None:
        """Begin again in a forked child."""


_THREADED: weakref.WeakSet[Threaded] = weakref.WeakSet()


def begin_again_in_children(threaded: Threaded) -> None:
    """Call `begin_again` of an object in every child that is forked while it lives."""
    _THREADED.add(threaded)


def _after_fork() -> None:
    for threaded in list(_THREADED):
        threaded.begin_again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
