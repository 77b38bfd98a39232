"""Locks on output paths. A lock is released when its process ends, even if the process is killed.

The lock is `flock` on a file `.NAME.lock` next to the output. The kernel keeps it, so it works across processes,
containers and PID namespaces. It also works over NFS, where Linux turns it into a lock of the server. The file names
its holder for the error message only: process ids prove nothing, since they are reused and differ between namespaces.
A holder deletes the file before it releases the lock. A process that locked a file therefore checks that the file is
still there.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from lora_ft.core.errors import UsageError

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)
# Lock files that this context holds, since a job may call another job for the same output. Another thread starts with
# an empty context, so it is refused like another process.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextlib.contextmanager
def locked(place: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of an output path and yield True; yield False, without a lock, if the file system has none.

    Args:
        place: File or folder to write, which may be missing. Missing parents are created, and removed if still empty.
        wait: Wait for another holder instead of raising.

    Raises:
        UsageError: Another job holds the lock.
    """
    path = _lock_file(place)
    if path in _held.get():
        yield True
        return
    parents = _make_parents(path.parent)
    descriptor, works = _acquire(path, place, wait=wait)
    token = _held.set(_held.get() | ({path} if works else set()))
    try:
        yield works
    finally:
        _held.reset(token)
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)
        for parent in reversed(parents):
            with contextlib.suppress(OSError):
                parent.rmdir()


def holds(place: Path) -> bool:
    """Return True if the running job holds the lock of an output path."""
    return _lock_file(place) in _held.get()


def try_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file; return False if the file system has no locks.

    Raises:
        BlockingIOError: Another process or thread holds the lock, and `wait` is False.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except ModuleNotFoundError:  # Windows
        return False
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _lock_file(place: Path) -> Path:
    return place.parent.resolve() / f".{place.name}.lock"


def _make_parents(folder: Path) -> list[Path]:
    """Create a folder and its parents; return the folders that were missing, outermost first."""
    missing = []
    parent = folder
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _acquire(path: Path, place: Path, *, wait: bool) -> tuple[int, bool]:
    """Return an open file descriptor, and True if it is locked or False if the file system has no locks."""
    while True:
        descriptor = _open(path)
        try:
            works = try_lock(descriptor, wait=wait)
            if not works or _is_same(path, descriptor):
                _sign(descriptor)
                return descriptor, works
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UsageError(
                f"another job is writing to {place}{holder}", "wait for it or stop it, or give another --out"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open or create a lock file, read-only if it belongs to another user and is not writable."""
    flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write the holder of the lock into its file."""
    now = datetime.datetime.now(datetime.UTC)
    content = {"host": platform.node(), "process": os.getpid(), "since": f"{now:%Y-%m-%d %H:%M:%S} UTC"}
    with contextlib.suppress(OSError):  # read-only, or the disk is full
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)


def _holder(descriptor: int) -> str:
    """Return host, process and time of the holder in parentheses after a space, or "" if they are unreadable."""
    try:
        content = json.loads(os.pread(descriptor, 1000, 0))
        host, process, since = (str(content[key]) for key in ("host", "process", "since"))
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    text = f"host {host}, process {process}, since {since}"
    return f" ({text})" if text.isprintable() else ""
