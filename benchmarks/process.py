"""The parent's side of an engine's process: asks it, pauses it while others run, and notices when it dies or hangs."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from export.errors import LoraFtError

_WORKER = Path(__file__).with_name("worker.py")
_LIMIT = 900.0  # seconds that one call may take; compiling takes minutes


class EngineFailed(LoraFtError):
    """An engine answered with an error, died, or did not answer."""


class Process:
    """An engine's process. Use it as a context manager; it ends when the block does.

    Between two calls it is stopped: threads of one engine that spin for work cannot take the cores from another.

    Args:
        name: of the engine, for errors.
        python: the interpreter that has its packages.
        arguments: of `benchmarks.worker`.
        threads: of one call.
    """

    def __init__(self, name: str, python: str, arguments: Sequence[str], threads: int) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [python, "-P", str(_WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, bufsize=1, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
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
        """The reply to one call, after which the process stands still again.

        Raises:
            EngineFailed: it has none.
        """
        self.send(call, **fields)
        reply = self.reply(_LIMIT)
        if reply is None:
            raise EngineFailed(f"the engine {self._name} did not answer a call ({call}) in {_LIMIT:.0f} s")
        return reply

    def send(self, call: str, **fields: Any) -> None:
        """Begin a call; `reply` ends it."""
        assert self._process.stdin is not None
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
            self._stopped = False
        try:
            self._process.stdin.write(json.dumps({"call": call, **fields}) + "\n")
        except (BrokenPipeError, OSError):
            raise self._death() from None

    def reply(self, timeout: float) -> dict[str, Any] | None:
        """The reply to the call that was begun, or None where there is none after so many seconds."""
        assert self._process.stdout is not None
        if not self._replies.select(timeout):
            return None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        self._process.send_signal(signal.SIGSTOP)
        self._stopped = True
        reply = json.loads(line)
        if "error" in reply:
            raise EngineFailed(f"the engine {self._name}: {reply['error']}")
        return reply

    def memory(self) -> dict[str, float]:
        """Megabytes resident now and at most: "steady" and "peak"."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return {
            name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in (("steady", "VmRSS"), ("peak", "VmHWM"))
        }

    def _death(self) -> EngineFailed:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().splitlines() if line.strip()]
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        return EngineFailed(f"the engine {self._name} ended with {why}" + (f": {said[-1].strip()}" if said else ""))


def evict(folder: Path) -> None:
    """Ask the system to forget what it holds of a folder's files, so that the next load reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # pages that are not written yet would stay
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
