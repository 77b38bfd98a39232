"""Atomic writes: all output is written next to its destination, synced, then renamed to it.

A reader therefore sees either a complete file or folder, or none. An interrupted or failed job leaves nothing behind. A
killed process cannot clean up, so the next job that writes to the same place removes its leftovers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError, first_line
from lora_ft.core.json_limits import parse_json as parse_json
from lora_ft.core.locks import try_lock
from lora_ft.core.output_paths import making
from lora_ft.core.ownership import foreign_reason
from lora_ft.core.staging import staging_name, tidy

_MAX_JSON = 1 << 28  # bytes; a parsed value takes up to 25 times as many, and the largest tokenizer.json has 17 million


@contextlib.contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder next to `out`; rename it to `out` if the block succeeds, otherwise delete it.

    The lock of `out` is held meanwhile. A link at `out` stays, and its target is created or replaced. An existing
    folder is unchanged until the swap.

    Raises:
        UsageError: `out` may not be created (see `lora_ft.core.output_paths.refuse_existing`), or another job is
            creating it.
    """
    with making(out, overwrite=overwrite) as place:
        staging = staging_name(place)
        staging.mkdir()
        try:
            yield staging
            sync_tree(staging)
            replace_folder(staging, place)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def replace_folder(new: Path, out: Path) -> None:
    """Rename folder `new` to `out`, and remove the old folder only after the new one is in place.

    Raises:
        LoraFtError: `out` exists but was not created by lora-ft; `new` keeps its name.
    """
    if not os.path.lexists(out):
        os.rename(new, out)
        sync(out.parent)
        return
    reason = "is not a folder" if out.is_symlink() or not out.is_dir() else foreign_reason(out)
    if reason:
        raise LoraFtError(f"{out} {reason}, so it was not replaced by {new}", "move it away, and rename that folder")
    old = staging_name(out, ".old")
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(old, out)
        raise
    try:
        sync(out.parent)
    finally:
        shutil.rmtree(old)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either the old content or all of the new content. Links are followed."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path)
    staging, descriptor = _locked_file(path)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically like `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        LoraFtError: The file is unreadable, holds something else, or is larger than `_MAX_JSON`.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise ValueError(f"{size:,} bytes, more than {_MAX_JSON:,}")
        value = parse_json(path.read_bytes(), path)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
    except (OSError, ValueError, LoraFtError) as error:
        reason = error.message.removeprefix(f"{path} ") if isinstance(error, LoraFtError) else first_line(error)
        raise LoraFtError(f"{path} is missing or damaged ({reason})", "copy or create it again") from error
    return value


def file_status(path: Path) -> tuple[int, int, int] | None:
    """Return the time of change in ns, the size in bytes and the inode of a file, or None if there is none.

    Two equal values tell that a file is unchanged, in microseconds and without reading it.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself, to the disk.

    Files also get the permissions that `folder` has by the umask, since some libraries write files that only their
    owner can read.
    """
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode | allowed != mode:
                path.chmod(mode | allowed)
            sync(path)
        sync(Path(root))


def folder_size(folder: Path) -> int:
    """Return the total size of all files below `folder`, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked_file(out: Path) -> tuple[Path, int]:
    """Create a file next to `out` and lock it while it is open, since `tidy` deletes unlocked files."""
    while True:
        path = staging_name(out)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try_lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # `tidy` deleted it before it was locked
