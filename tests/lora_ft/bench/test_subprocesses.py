"""Processes of engines: they are stopped between calls, and their failures become one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_ft.bench import worker
from lora_ft.bench.subprocesses import Process, ProcessFailed, evict

ENGINE = """
import os, sys, time
import numpy as np

def load(folder, threads):
    print("noise on stdout")
    def generate(ids, mask, new, least):
        if new == 7:
            raise ValueError("seven\\nlines")
        if new == 8:
            print("the last words", file=sys.stderr)
            os._exit(3)
        if new == 9:
            os.kill(os.getpid(), 9)
        if new == 10:
            time.sleep(60)
        return np.full((len(ids), new), 5)
    return generate
"""


@pytest.fixture
def engine(tmp_path: Path) -> Process:
    file = tmp_path / "engine.py"
    file.write_text(ENGINE)
    arguments = [str(file), "fp32", str(tmp_path), str(tmp_path), "1", "cpu"]
    process = Process("the engine mine", [sys.executable, "-P", worker.__file__, *arguments], {"OMP_NUM_THREADS": "1"})
    process.ask("load")
    return process


def generate(process: Process, new: int, rows: int = 2) -> dict:  # type: ignore[type-arg]
    return process.ask("generate", ids=[[3, 4, 1]] * rows, new=new, least=new, decoding="greedy", room=new)


def state(process: Process) -> str:
    stat = Path(f"/proc/{process._process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_reply_has_times_and_tokens(engine: Process) -> None:
    with engine:
        reply = generate(engine, 3)
        assert reply["tokens"] == [[5, 5, 5]] * 2
        assert reply["seconds"] >= 0 and reply["cpu"] >= 0
        assert engine.ask("encode", ids=[[3]])["seconds"] is None  # the engine has no `encode`
        memory = engine.memory()
        assert 1 < memory["steady"] <= memory["peak"] < 10_000


def test_process_is_stopped_between_calls(engine: Process) -> None:
    with engine:
        for new in (1, 2):
            generate(engine, new)
            end = time.monotonic() + 5
            while state(engine) != "T" and time.monotonic() < end:
                time.sleep(0.01)
            assert state(engine) == "T"


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (7, "the engine mine: ValueError: seven$"),
        (8, "ended with exit code 3: the last words"),
        (9, "with signal 9"),
    ],
)
def test_failure_has_its_reason(engine: Process, new: int, why: str) -> None:
    with engine, pytest.raises(ProcessFailed, match=why):
        generate(engine, new)


def test_hanging_process_is_an_error(engine: Process) -> None:
    with engine:
        engine.send("generate", ids=[[1]], new=10, least=10, decoding="greedy", room=1)
        with pytest.raises(ProcessFailed, match="did not answer within 0 s"):
            engine.reply(0.2)


def test_process_continues_after_an_error_reply(engine: Process) -> None:
    with engine:
        with pytest.raises(ProcessFailed):
            generate(engine, 7)
        assert generate(engine, 2)["tokens"] == [[5, 5]] * 2


def test_dead_process_is_an_error_of_the_next_call(engine: Process) -> None:
    with engine:
        engine._process.kill()
        engine._process.wait()
        with pytest.raises(ProcessFailed, match="signal 9"):
            generate(engine, 1)


@pytest.mark.parametrize("waited_for", [False, True])
def test_dead_process_has_no_memory(engine: Process, waited_for: bool) -> None:
    with engine:
        assert set(engine.memory()) == {"steady", "peak"}
        os.kill(engine.pid, signal.SIGKILL)
        if waited_for:
            with pytest.raises(ProcessFailed):
                engine.ask("load")
        else:
            os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)
        assert engine.memory() == {}


def test_stopped_process_is_killed_on_exit(engine: Process) -> None:
    with engine:
        generate(engine, 1)
    assert engine._process.returncode is not None


PARENT = """
import os, signal, sys
from lora_ft.bench.subprocesses import Process

process = Process("the engine mine", sys.argv[1:], {"OMP_NUM_THREADS": "1"})
process.ask("load")
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_stopped_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    arguments = [str(tmp_path / "engine.py"), "fp32", str(tmp_path), str(tmp_path), "1", "cpu"]
    command = [sys.executable, "-c", PARENT, sys.executable, "-P", worker.__file__, *arguments]
    parent = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while (folder := Path(f"/proc/{int(parent.stdout)}")).exists():
        if (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":  # ended, and nobody waits for it
            break
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.01)


def test_evicted_files_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"x" * 10_000)
    evict(tmp_path)
    assert (tmp_path / "a" / "weights").read_bytes() == b"x" * 10_000
