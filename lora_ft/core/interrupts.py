"""Signals that ask training to end: the first one asks for a checkpoint, the second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from lora_ft.core.distributed import processes
from lora_ft.core.errors import LoraFtError

# Ctrl-C; what `kill`, Docker, Slurm and Kubernetes send; a terminal or a connection that was closed.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ASKED_FOR = (signal.SIGINT, signal.SIGTERM)  # shells ignore SIGINT for jobs in the background
# torchrun passes on a signal that its processes, being of one group, may have got already.
_ECHO = 2.0  # seconds


class Interrupted(LoraFtError):
    """Training was stopped by a signal after a checkpoint. The exit code is 128 and the signal's number."""

    exit_code = 128 + signal.SIGINT

    def by(self, number: int) -> Interrupted:
        """Return the same for the signal that caused it."""
        self.exit_code = 128 + number
        return self


class Interrupts:
    """Listens for SIGINT, SIGTERM and SIGHUP between `take` and `release`.

    Attributes:
        caught: Number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def take(self) -> None:
        """Listen, where this is the main thread; others cannot. SIGHUP stays ignored under nohup."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous is not None and (number in _ASKED_FOR or previous is not signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._on_signal)

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _on_signal(self, number: int, *_: Any) -> None:
        if not self.caught:
            self.caught, self._at = number, time.monotonic()
            return
        if processes() > 1 and number == self.caught and time.monotonic() - self._at < _ECHO:
            return
        if number == signal.SIGINT:  # twice: the user means it
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def name_of(number: int) -> str:
    """Return what a person calls a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
