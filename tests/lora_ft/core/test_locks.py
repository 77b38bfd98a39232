"""Locks on output paths: they work between processes, and are released when their holder ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ft.core import locks
from lora_ft.core.errors import UsageError
from lora_ft.core.files import staged_folder
from lora_ft.core.locks import holds, locked
from tests.export.oracle import entries

ROOT = Path(__file__).parents[3]
HOLD = """
import pathlib, sys, time
from lora_ft.core.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(place: Path, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock of a place until it is killed."""
    command = [*prefix, sys.executable, "-c", HOLD, str(place)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_is_refused_with_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process, pytest.raises(UsageError) as caught, locked(tmp_path / "out"):
        pass
    assert f"process {process.pid}, since 20" in str(caught.value) and "wait for it" in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert entries(tmp_path) == {".out.lock"}
        with locked(tmp_path / "out"):
            pass
    assert entries(tmp_path) == set()


def test_a_stopped_process_keeps_its_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(UsageError, match="another job is writing"), locked(tmp_path / "out"):
            pass


def test_job_in_another_pid_namespace_keeps_its_lock_and_staging(tmp_path: Path) -> None:
    prefix = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine makes no PID namespaces")
    half = tmp_path / ".out.1-0a.partial"  # process 1 of that namespace
    half.mkdir()
    with (
        holder(tmp_path / "out", *prefix),
        pytest.raises(UsageError, match="another job"),
        staged_folder(tmp_path / "out"),
    ):
        pass
    assert half.is_dir()
    with staged_folder(tmp_path / "out"):
        pass
    assert entries(tmp_path) == {"out"}


def test_other_places_are_free(tmp_path: Path) -> None:
    with locked(tmp_path / "out"), locked(tmp_path / "other"):
        assert entries(tmp_path) == {".out.lock", ".other.lock"}
    assert entries(tmp_path) == set()


def test_nested_job_reuses_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        with locked(tmp_path / "out"):
            assert holds(tmp_path / "out")
        assert holds(tmp_path / "out") and entries(tmp_path) == {".out.lock"}
    assert not holds(tmp_path / "out")


def test_another_thread_is_refused(tmp_path: Path) -> None:
    refused: list[UsageError] = []

    def try_it() -> None:
        try:
            with locked(tmp_path / "out"):
                pass
        except UsageError as error:
            refused.append(error)

    with locked(tmp_path / "out"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_waiting_threads_get_the_lock_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "out", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and entries(tmp_path) == set()


def test_missing_parents_are_created_and_removed_if_empty(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert entries(tmp_path) == set()
    with locked(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out").mkdir()
    assert entries(tmp_path) == {"a"}


def test_two_names_of_a_folder_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with holder(tmp_path / "real" / "out"), pytest.raises(UsageError), locked(tmp_path / "link" / "out"):
        pass


def test_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "try_lock", lambda descriptor, wait=False: False)
    with locked(tmp_path / "out") as works:
        assert not works and not holds(tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", json.dumps({"host": "\x1b[2J", "process": 1, "since": ""}), "9" * 99]
)
def test_content_of_the_lock_file_is_not_trusted(tmp_path: Path, content: str) -> None:
    with holder(tmp_path / "out"):
        (tmp_path / ".out.lock").write_text(content)
        with pytest.raises(UsageError) as caught, locked(tmp_path / "out"):
            pass
    assert str(caught.value).isprintable()
