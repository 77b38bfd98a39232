"""A started server ends with its context, and its CPU time and memory are read."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_ft.bench.server_process import ServerProcess, Watch, _fields, cpu_seconds, family, megabytes
from lora_ft.core.errors import LoraFtError, UsageError

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


def require_ended(pids: Sequence[int]) -> None:
    """Assert that processes end. Orphans stay in /proc afterwards, until the system's first process reaps them."""
    for _ in range(200):
        states = [fields[0] for pid in pids if (fields := _fields(Path(f"/proc/{pid}/stat")))]
        if set(states) <= {"Z", "X"}:
            return
        time.sleep(0.02)
    pytest.fail(f"processes still run, in states {states}")


def python(code: str) -> str:
    """Return a command that runs Python code with a port as its argument."""
    return f"{shlex.join([sys.executable, '-c', code])} {{port}}"


def test_a_server_gets_a_free_port_and_ends_with_its_context(tmp_path: Path) -> None:
    with ServerProcess(f"{shlex.quote(sys.executable)} -m http.server {{port}} --bind 127.0.0.1") as server:
        for _ in range(200):
            try:
                assert urllib.request.urlopen(server.url, timeout=5).status == 200
                break
            except OSError:
                server.require_alive()
                time.sleep(0.05)
        else:
            pytest.fail("the server does not answer")
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url, timeout=1)


@needs_proc
def test_processes_that_a_server_started_end_with_it() -> None:
    """A shell that gets SIGTERM ends at once and leaves its children behind."""
    child = shlex.join([sys.executable, "-c", "import time; time.sleep(60)"])
    with ServerProcess(f"sh -c {shlex.quote(f'{child} & wait')} {{port}}") as server:
        for _ in range(400):
            if len(pids := family(server.pid)) == 2:
                break
            time.sleep(0.05)
    assert len(pids) == 2
    require_ended(pids)


@pytest.mark.usefixtures("default_signals")
def test_a_second_ctrl_c_kills_a_server_that_ignores_sigterm() -> None:
    """The server does not end on SIGTERM, but sends Ctrl-C to the process that waits for its end."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n"
        "print('listening', flush=True)\n"
        "time.sleep(60)"
    )
    server = ServerProcess(python(code))
    with pytest.raises(KeyboardInterrupt), server:
        while not os.fstat(server._log.fileno()).st_size:
            server.require_alive()
            time.sleep(0.01)
    assert server._process.returncode == -signal.SIGKILL


def test_a_server_that_ended_is_reported_with_its_last_line() -> None:
    with ServerProcess(python("print('first'); raise SystemExit('no such bundle')")) as server:
        server._process.wait()
        with pytest.raises(LoraFtError, match="ended with exit code 1: no such bundle"):
            server.require_alive()


def test_a_command_needs_a_place_for_the_port() -> None:
    with pytest.raises(UsageError, match=r"has no \{port\}"):
        ServerProcess("lora-ft serve bundle")


def test_a_command_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        ServerProcess("/no/such/program {port}")


@needs_proc
def test_children_of_a_server_are_counted() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # the child runs
        pids = family(process.pid)
        assert pids[0] == process.pid and len(pids) == 2
        assert megabytes(pids) > megabytes(pids[:1]) > 1
        assert cpu_seconds(pids) >= cpu_seconds(pids[:1])
    finally:
        process.communicate("\n")
    assert family(process.pid) == []


@needs_proc
def test_a_watch_has_a_reading_at_the_begin_and_at_the_end() -> None:
    with Watch(os.getpid()) as watch:
        sum(range(1000))
    assert len(watch.readings) >= 2
    assert [reading.seconds for reading in watch.readings] == sorted(reading.seconds for reading in watch.readings)
    assert watch.readings[0].cpu >= 0 and watch.readings[-1].megabytes > 1


def test_an_unknown_process_has_no_readings() -> None:
    with Watch(None) as watch:
        pass
    assert watch.readings == []
