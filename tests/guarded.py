"""Run a command in a fresh home directory and record every connection, name lookup and file that it leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lora_ft.core.telemetry import OPT_OUT

ROOT = Path(__file__).parents[1]
# Python imports sitecustomize when it starts, also in child processes.
GUARD = """
import os, socket, traceback

def refuse(name):
    def call(*arguments, **options):
        target = arguments[1] if name.startswith("connect") else arguments[0]
        if isinstance(target, (str, bytes)) and name.startswith("connect"):
            return real[name](*arguments, **options)  # a Unix socket
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{name} {target!r}\\n" + "".join(traceback.format_stack(limit=12)))
        raise OSError(f"{name} to {target!r} is not allowed in this test")
    return call

class Guarded(socket.socket):
    def connect(self, address):
        return refuse("connect")(self, address)
    def connect_ex(self, address):
        return refuse("connect_ex")(self, address)

real = {"connect": socket.socket.connect, "connect_ex": socket.socket.connect_ex}
socket.socket = Guarded
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "create_connection"):
    setattr(socket, name, refuse(name))
"""


def watched(folder: Path, command: list[str], **variables: str) -> tuple[subprocess.CompletedProcess[str], str, Path]:
    """Run a command in a new home directory. Return the process, everything it tried to reach, and the directory."""
    home = folder / "home"
    (folder / "guard").mkdir()
    home.mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in OPT_OUT and name not in ("HF_HUB_OFFLINE", "HF_HOME", "XDG_CACHE_HOME", "CI")
    }
    environment = inherited | {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), str(ROOT)]),
        "GUARD_LOG": str(folder / "reached"),
        "LORA_FT_CACHE": str(folder / "cache"),
        **variables,
    }
    trace = folder / "trace"
    process = subprocess.run(
        [*tracer(trace), *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    reached = [path.read_text() for path in (folder / "reached",) if path.is_file()]
    if trace.is_file():  # what compiled code does, which the guard of Python's sockets does not see
        reached += [line for line in trace.read_text(errors="replace").splitlines() if "AF_INET" in line]
    return process, "\n".join(reached), home


def tracer(trace: Path) -> list[str]:
    """Return the strace command that records connections of compiled code, or nothing if strace cannot trace."""
    command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    if (
        shutil.which("strace") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        return []
    trace.unlink(missing_ok=True)
    return command
