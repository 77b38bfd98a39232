"""Several processes behind one socket, each with its own bundles and its share of the cores.

The parent binds the socket and answers nothing itself. It passes signals on, starts a process again that ended
unexpectedly, and removes that process's gauges from the metrics.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any

from lora_ft.core.errors import LoraFtError
from lora_ft.core.failures import run_safely
from lora_ft.core.hardware import allowed_cpus
from lora_ft.serving.metrics import FOLDER_VARIABLE, forget_process
from lora_ft.serving.process import EngineSettings, ServerSettings, run_process
from lora_ft.serving.request_log import RequestLog

_SPARE_SECONDS = 5.0  # after the grace, before a process is killed
_TICK = 0.2  # seconds
_PAUSE = 1.0  # seconds between two starts of a process that keeps failing


@dataclass
class _Worker:
    """A process.

    Attributes:
        number: Its place.
        process: The process.
        ready: Set by the process once it answers requests.
        reloads: True if it is to reload once it is ready.
    """

    number: int
    process: SpawnProcess
    ready: Event
    reloads: bool = False


class Workers:
    """The processes of a server.

    Args:
        settings: Settings of the server.
        listener: Bound socket.
        started: Called once all processes answer requests.
    """

    def __init__(self, settings: ServerSettings, listener: socket.socket, started: Callable[[], None]) -> None:
        self._settings, self._listener, self._started = settings, listener, started
        self._log = RequestLog()
        self._context = multiprocessing.get_context("spawn")
        self._signals: list[int] = []
        self._workers: list[_Worker] = []

    def run(self) -> None:
        """Run until a signal ends the server.

        Raises:
            LoraFtError: A process could not be started.
        """
        previous = {number: signal.signal(number, self._note) for number in _handled()}
        with tempfile.TemporaryDirectory(prefix="lora-ft-metrics-", ignore_cleanup_errors=True) as folder:
            os.environ[FOLDER_VARIABLE] = folder
            try:
                self._workers = [self._start(number) for number in range(self._settings.workers)]
                self._watch()
            finally:
                self._stop()
                del os.environ[FOLDER_VARIABLE]
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _note(self, number: int, *_: Any) -> None:
        self._signals.append(number)

    def _start(self, number: int) -> _Worker:
        ready = self._context.Event()
        settings = replace(self._settings, engine=share_of(self._settings.engine, number, self._settings.workers))
        process = self._context.Process(target=_work, args=(settings, self._listener, ready, os.getpid()))
        process.start()
        return _Worker(number, process, ready)

    def _watch(self) -> None:
        announced = False
        while True:
            multiprocessing.connection.wait([worker.process.sentinel for worker in self._workers], timeout=_TICK)
            while self._signals:
                if self._signals.pop(0) in (signal.SIGTERM, signal.SIGINT):
                    return
                for worker in self._workers:
                    worker.reloads = True
            self._reload()
            for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
                self._replace(worker)
            if not announced and all(worker.ready.is_set() for worker in self._workers):
                announced = True
                self._started()

    def _reload(self) -> None:
        """Pass SIGHUP on to processes that are ready: it would end one that is still loading."""
        for worker in self._workers:
            if worker.reloads and worker.ready.is_set() and worker.process.is_alive() and worker.process.pid:
                worker.reloads = False
                os.kill(worker.process.pid, signal.SIGHUP)

    def _replace(self, worker: _Worker) -> None:
        """Start a process again that ended; one that never answered would end again."""
        code = worker.process.exitcode
        if not worker.ready.is_set():
            raise LoraFtError(f"a worker process ended before it was ready (exit code {code})", "see its message above")
        forget_process(worker.process.pid or 0)
        self._log.event("worker_ended", worker=worker.number, exit_code=code)
        time.sleep(_PAUSE)
        self._workers[self._workers.index(worker)] = self._start(worker.number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, number)

    def _stop(self) -> None:
        """Let all processes drain, and kill those that take too long. A second signal kills at once."""
        self._send(signal.SIGTERM)
        end = time.monotonic() + self._settings.grace + _SPARE_SECONDS
        while any(worker.process.is_alive() for worker in self._workers) and time.monotonic() < end:
            if any(number != getattr(signal, "SIGHUP", None) for number in self._signals):
                break
            time.sleep(_TICK / 4)
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()


def share_of(engine: EngineSettings, number: int, workers: int) -> EngineSettings:
    """Return how bundles run in one of several processes: with its share of the cores, at least one."""
    cores = engine.threads or allowed_cpus()
    return replace(engine, threads=max(1, cores // workers + (number < cores % workers)))


def _handled() -> list[int]:
    names = ("SIGTERM", "SIGINT", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _work(settings: ServerSettings, listener: socket.socket, ready: Event, parent: int) -> None:
    """Run one process."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which tells its processes
    sys.exit(run_safely(lambda: run_process(settings, listener, ready.set, parent=parent)))
