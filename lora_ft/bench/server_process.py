"""A server that a benchmark starts, and what it takes from the machine: CPU time and memory over time."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lora_ft.core.errors import LoraFtError, UsageError

PORT = "{port}"
_GRACE = 15.0  # seconds to end after SIGTERM
_EVERY = 0.5  # seconds between two readings of CPU time and memory


@dataclass(frozen=True)
class Reading:
    """State of a process and its children.

    Attributes:
        seconds: Time since the first reading.
        cpu: CPU time since the first reading, in core-seconds.
        megabytes: Resident memory.
    """

    seconds: float
    cpu: float
    megabytes: float


class ServerProcess:
    """A server as a child process. Use it as a context manager, which ends the server on exit.

    Args:
        command: Command line, in which {port} is replaced by a free port.

    Attributes:
        url: Address of the server.
    """

    def __init__(self, command: str) -> None:
        if PORT not in command:
            raise UsageError(f"the command {command!r} has no {PORT}", f"add it, as in `--port {PORT}`")
        port = str(_free_port())
        self._command, self.url = (
            [part.replace(PORT, port) for part in shlex.split(command)],
            f"http://127.0.0.1:{port}",
        )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._log.close()
            raise UsageError(f"{self._command[0]} cannot be started ({error.strerror})") from error

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def require_alive(self) -> None:
        """Raise LoraFtError with the last line of its log if the server has ended."""
        code = self._process.poll()
        if code is not None:
            self._log.seek(0)
            lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
            reason = f": {lines[-1].strip()}" if lines else ""
            raise LoraFtError(f"`{shlex.join(self._command)}` ended with exit code {code}{reason}")

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        finally:  # a second Ctrl-C ends the wait
            self._signal(signal.SIGKILL)  # workers that outlived it
            self._process.wait()
            self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the whole process group, since a command may be a script that starts the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Watch:
    """Reads CPU time and memory of a process and its children, in a thread. Use it as a context manager.

    Args:
        pid: Process, or None to read nothing.

    Attributes:
        readings: Readings so far; empty on systems without /proc.
    """

    def __init__(self, pid: int | None) -> None:
        self._pids = family(pid) if pid is not None else []
        self.readings: list[Reading] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        if self._pids:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._pids:
            self._thread.join()

    def _run(self) -> None:
        began, first = time.monotonic(), cpu_seconds(self._pids)
        while True:
            ended = self._ended.wait(0 if not self.readings else _EVERY)
            cpu, size = cpu_seconds(self._pids) - first, megabytes(self._pids)
            self.readings.append(Reading(time.monotonic() - began, cpu, size))
            if ended and len(self.readings) > 1:
                return


def family(pid: int) -> list[int]:
    """Return a process and its descendants; nothing on systems without /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if fields := _fields(path):
            parents[int(path.parent.name)] = int(fields[1])
    members = [pid] if pid in parents else []
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time of processes, in core-seconds."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [_fields(Path(f"/proc/{pid}/stat")) for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats if fields) / ticks


def megabytes(pids: Sequence[int]) -> float:
    """Return the resident memory of processes. Pages that they share count for each of them."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _fields(path: Path) -> list[str]:
    """Return the fields of a process's state after its name, which may have spaces; none if it has ended."""
    try:
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
