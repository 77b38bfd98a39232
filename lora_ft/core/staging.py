"""Names of staged outputs, and the removal of staged outputs that killed processes left behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from lora_ft.core.locks import holds, try_lock

_STAGED = ".partial"
_STAGED_NAME = re.compile(rf"\..+\.\d+-[0-9a-f]{{8}}(\.old)?{re.escape(_STAGED)}(\.lock)?")


def staging_name(out: Path, kind: str = "") -> Path:
    """Return a new name next to `out`; `kind` is ".old" for an old output that is moved away."""
    return out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}{kind}{_STAGED}")


def is_staged(name: str) -> bool:
    """Return True if a file or folder name is that of an output being written, or left behind by a killed process."""
    return _STAGED_NAME.fullmatch(name) is not None


def tidy(out: Path) -> None:
    """Delete leftovers of dead processes next to `out`; restore the old folder if a process died during a swap.

    A folder is a leftover if this job holds the lock of `out`, since folders are only staged under that lock. A file
    is a leftover if it can be locked.
    """
    # A bank has its own lock while it is staged, since adapters are added to it.
    pattern = re.compile(rf"\.?\.{re.escape(out.name)}\.\d+-[0-9a-f]+(\.old)?{re.escape(_STAGED)}(\.lock)?")
    for path in list(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if path.is_symlink() or path.is_file():
            _delete_unlocked(path)
        elif not holds(out):
            continue
        elif match[1] and not out.exists():
            os.rename(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _delete_unlocked(path: Path) -> None:
    """Delete a file unless its lock is held or cannot be tested."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
