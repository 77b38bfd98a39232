"""Progress reports of long jobs. Jobs call these methods; only the command line displays anything."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receiver of a job's progress reports."""

    def stage(self, name: str, total: int = 0, done: int = 0) -> None:
        """Begin a stage of `total` steps (0: unknown), of which `done` are already done."""

    def advance(self, done: int, figures: str = "") -> None:
        """Report that `done` steps of the stage are done; `figures` is a short line of current numbers."""

    def note(self, text: str) -> None:
        """Report a line that stays on the screen."""


class Silent:
    """A receiver that ignores reports, for library use and for ranks above 0 of a multi-process run."""

    def stage(self, name: str, total: int = 0, done: int = 0) -> None: ...

    def advance(self, done: int, figures: str = "") -> None: ...

    def note(self, text: str) -> None: ...
