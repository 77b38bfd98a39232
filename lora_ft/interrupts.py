"""Ctrl-C while training: the first one asks for a checkpoint, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from typing import Any

from export.errors import LoraFtError


class Interrupted(LoraFtError):
    """Training was stopped by Ctrl-C after a checkpoint."""

    exit_code = 130


class Interrupts:
    """Listens for Ctrl-C between `take` and `release`; `caught` tells whether it came."""

    def __init__(self) -> None:
        self.caught = False
        self._previous: Any = None

    def take(self) -> None:
        """Listen, where this is the main thread; others cannot."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_interrupt)

    def release(self) -> None:
        """Give Ctrl-C back to whoever had it."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _on_interrupt(self, *_: Any) -> None:
        if self.caught:  # twice: the user means it
            raise KeyboardInterrupt
        self.caught = True
