"""Signals that end training: the first one requests a checkpoint, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from lora_ft.core.distributed import processes
from lora_ft.core.errors import LoraFtError

# SIGINT is Ctrl-C. `kill`, Docker, Slurm and Kubernetes send SIGTERM, a closed terminal or connection SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ASKED_FOR = (signal.SIGINT, signal.SIGTERM)  # handled even if ignored: shells ignore SIGINT for background jobs
# torchrun forwards a signal that its processes may already have received, since they share a process group.
_ECHO = 2.0  # seconds


class Interrupted(LoraFtError):
    """A training stopped by a signal after a checkpoint. The exit code is 128 plus the signal's number."""

    exit_code = 128 + signal.SIGINT

    def by(self, number: int) -> Interrupted:
        """Set the exit code for the signal that caused it, and return self."""
        self.exit_code = 128 + number
        return self


class Interrupts:
    """A listener for SIGINT, SIGTERM and SIGHUP between `take` and `release`.

    Attributes:
        caught: Number of the first signal received, or 0.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def take(self) -> None:
        """Start listening, in the main thread only since others cannot. SIGHUP stays ignored under nohup."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous is not None and (number in _ASKED_FOR or previous is not signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Restore the previous signal handlers."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, *_: Any) -> None:
        if not self.caught:
            self.caught, self._at = number, time.monotonic()
            return
        if processes() > 1 and number == self.caught and time.monotonic() - self._at < _ECHO:
            return
        if number == signal.SIGINT:  # the second Ctrl-C ends at once
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def name_of(number: int) -> str:
    """Return the common name of a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
