"""Everything that is written to disk goes through here: beside its place first, synced, then renamed into it.

A reader therefore sees a whole file or folder or none, and an interrupted or failed job leaves nothing behind. What a
killed process did leave (it could not clean up) is removed by the next job that writes to the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import UsageError

_STAGED = ".partial"


@contextlib.contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out`; when the block ends well it becomes `out`, otherwise it is deleted.

    Raises:
        UsageError: `out` exists and `overwrite` is False. An existing folder stays as it was until the swap.
    """
    refuse_existing(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(out)
    staging = out.with_name(f".{out.name}.{os.getpid()}{_STAGED}")
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        replace_folder(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError where `out` is taken. Jobs call this first, before the work that would be lost."""
    if not overwrite and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"{out} already exists", "give another --out or add --overwrite")


def replace_folder(new: Path, out: Path) -> None:
    """Rename folder `new` to `out`, removing what was there only once the new one is in place."""
    old = None
    if out.exists():
        old = out.with_name(f".{out.name}.{os.getpid()}.old{_STAGED}")
        os.rename(out, old)
    os.rename(new, out)
    _sync(out.parent)
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either the old content or all of the new."""
    staging = path.with_name(f".{path.name}.{os.getpid()}{_STAGED}")
    try:
        with open(staging, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_orphans(out: Path) -> None:
    for path in out.parent.glob(f".{out.name}.*{_STAGED}"):
        pid = path.name.removeprefix(f".{out.name}.").split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
