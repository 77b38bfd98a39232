"""Progress reports of long jobs. Jobs call these methods; only the command line displays anything."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receiver of a job's progress reports."""

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None:
        """Begin a stage of `total` steps (0: unknown), of which `completed` are already complete."""

    def advance(self, completed: int, figures: str = "") -> None:
        """Report that `completed` steps of the stage are complete; `figures` is a short line of current numbers."""

    def note(self, text: str) -> None:
        """Report a line that stays on the screen."""


class Silent:
    """A receiver that ignores reports, for library use and for ranks above 0 of a multi-process run."""

    def stage(self, name: str, total: int = 0, completed: int = 0) -> None: ...

    def advance(self, completed: int, figures: str = "") -> None: ...

    def note(self, text: str) -> None: ...
