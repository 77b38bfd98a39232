"""How a long job says where it is. Jobs call these; only the command line draws."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a job tells whoever runs it."""

    def stage(self, name: str, total: int = 0, done: int = 0) -> None:
        """A new stage begins, of `total` steps (0: unknown) of which `done` are behind us."""

    def advance(self, done: int, figures: str = "") -> None:
        """So many steps of the stage are done; `figures` is a short line of current numbers."""

    def note(self, text: str) -> None:
        """A line to keep on the screen."""


class Silent:
    """Says nothing; for library use and for the lesser ranks of a multi-process run."""

    def stage(self, name: str, total: int = 0, done: int = 0) -> None: ...

    def advance(self, done: int, figures: str = "") -> None: ...

    def note(self, text: str) -> None: ...
