"""Signals that end long work.

In training (`Interrupts`), the first one requests a checkpoint, and the second one ends it at once. A benchmark
(`ended_by_signals`) has no checkpoint: SIGTERM and SIGHUP unwind it as Ctrl-C does, so that it stops the processes that
it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
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


class Terminated(BaseException):
    """SIGTERM or SIGHUP was received. It is no KeyboardInterrupt, since typer replaces that with exit code 130.

    Args:
        number: Number of the signal.

    Attributes:
        exit_code: 128 plus that number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(name_of(number))
        self.exit_code = 128 + number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise Terminated on SIGTERM and SIGHUP, and KeyboardInterrupt on SIGINT, even in background jobs of shells.

    A second SIGTERM or SIGHUP is ignored, so that it does not cut the cleanup short. Only the main thread can listen.
    SIGHUP stays ignored under nohup.
    """
    previous: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        for caught in previous.keys() - {signal.SIGINT}:
            signal.signal(caught, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not None and (number in _ASKED_FOR or before is not signal.SIG_IGN):
                previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


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
        """Start listening; only the main thread can. SIGHUP stays ignored under nohup."""
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
