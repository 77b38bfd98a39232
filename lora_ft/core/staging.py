"""Names for what is staged beside its place, and the removal of what killed processes left there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from lora_ft.core.locks import holds, try_lock

_STAGED = ".partial"


def staging_name(out: Path, kind: str = "") -> Path:
    """Return a new name beside `out`; `kind` is ".old" for what is moved out of the way."""
    return out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}{kind}{_STAGED}")


def tidy(out: Path) -> None:
    """Delete what dead processes left beside `out`; where one died in the middle of a swap, put the old folder back.

    Folders are dead if this job holds the lock of `out`, under which all of them are made; files if they can be locked.
    """
    # A bank takes adapters while it is staged, under a lock of its own.
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
    """Delete a file unless somebody holds its lock, or nobody can tell."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
