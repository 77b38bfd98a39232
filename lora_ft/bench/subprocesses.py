"""Processes that are measured: send requests, pause them during other processes' turns, and report their death."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_ft.core.errors import LoraFtError

_LIMIT = 900.0  # seconds of one call; compiling takes minutes


class ProcessFailed(LoraFtError):
    """A process answered with an error, died, or did not answer."""


class Process:
    """A process that replies in lines of JSON. Use it as a context manager, which kills the process on exit.

    The process is stopped from each reply until the next request. Otherwise its spinning idle threads would take cores
    from other engines.

    Args:
        name: Name in errors, e.g. "the engine torch/fp32".
        command: Command that starts the process.
        environment: Variables added to the current environment.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            start_new_session=True,
            env=os.environ | environment,
        )
        self._replies = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._replies.register(self._process.stdout, selectors.EVENT_READ)
        self._stopped = False

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._replies.close()
        self._errors.close()

    def ask(self, call: str, **fields: Any) -> dict[str, Any]:
        """Call a method of the worker and return its reply.

        Raises:
            ProcessFailed: The reply is an error or did not come in time, or the process died.
        """
        self.send(call, **fields)
        return self.reply()

    def send(self, call: str, **fields: Any) -> None:
        """Send a call; `reply` returns its result."""
        assert self._process.stdin is not None
        self._go_on()
        with contextlib.suppress(BrokenPipeError):  # the process is dead, which `reply` reports
            self._process.stdin.write(json.dumps({"call": call, **fields}) + "\n")

    def reply(self, limit: float = _LIMIT) -> dict[str, Any]:
        """Return the next reply and stop the process.

        Args:
            limit: Time to wait, in seconds.

        Raises:
            ProcessFailed: The reply is an error, did not come in time, or the process died.
        """
        assert self._process.stdout is not None
        self._go_on()
        if not self._replies.select(limit):
            raise ProcessFailed(f"{self._name} did not answer within {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        self._process.send_signal(signal.SIGSTOP)
        self._stopped = True
        reply = json.loads(line)
        if "error" in reply:
            raise ProcessFailed(f"{self._name}: {reply['error']}")
        return reply

    def _go_on(self) -> None:
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
            self._stopped = False

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def memory(self) -> dict[str, float]:
        """Return the current and the peak resident memory in megabytes, as "steady" and "peak".

        It is empty if the process is dead, or if the system does not report memory.
        """
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return {}
        fields = dict(line.split(":", 1) for line in lines)
        keys = {"steady": "VmRSS", "peak": "VmHWM"}  # absent if the process is dead and was not waited for
        return {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in keys.items() if key in fields}

    def _death(self) -> ProcessFailed:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        remedy = "check that the machine has enough free memory" if code == -signal.SIGKILL else ""
        return ProcessFailed(f"{self._name} ended with {why}" + (f": {lines[-1].strip()}" if lines else ""), remedy)


def evict(folder: Path) -> None:
    """Drop a folder's files from the file cache, so that the next load reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # dirty pages would stay in the cache
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
