"""Everything that is written to disk goes through here: beside its place first, synced, then renamed into it.

A reader therefore sees a whole file or folder or none, and an interrupted or failed job leaves nothing behind. What a
killed process did leave (it could not clean up) is removed by the next job that writes to the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import LoraFtError, UsageError, first_line
from export.json_limits import parse_json as parse_json

_STAGED = ".partial"
_MAX_JSON = 1 << 28  # bytes; a value takes up to 25 times as many, and the largest tokenizer has 17 million
_in_use: set[Path] = set()  # what this process is writing now


@contextlib.contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out`; when the block ends well it becomes `out`, otherwise it is deleted.

    Raises:
        UsageError: `out` exists and `overwrite` is False. An existing folder stays as it was until the swap.
    """
    refuse_existing(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _staging(out) as staging:
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
    if not out.exists():
        os.rename(new, out)
        _sync(out.parent)
        return
    with _staging(out, ".old") as old:
        os.rename(out, old)
        try:
            os.rename(new, out)
        except BaseException:
            os.rename(old, out)
            raise
        try:
            _sync(out.parent)
        finally:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either the old content or all of the new."""
    with _staging(path) as staging:
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        LoraFtError: the file cannot be read, holds something else, or is larger than `_MAX_JSON`.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise ValueError(f"{size:,} bytes, more than {_MAX_JSON:,}")
        value = parse_json(path.read_bytes(), path)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
    except (OSError, ValueError, LoraFtError) as error:
        said = error.message.removeprefix(f"{path} ") if isinstance(error, LoraFtError) else first_line(error)
        raise LoraFtError(f"{path} is missing or damaged ({said})", "copy or make it again") from error
    return value


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


@contextlib.contextmanager
def _staging(out: Path, kind: str = "") -> Iterator[Path]:
    """A name beside `out` that nobody else uses, after tidying up what killed processes left there."""
    _tidy(out)
    path = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}{kind}{_STAGED}")
    _in_use.add(path)
    try:
        yield path
    finally:
        _in_use.discard(path)


def _tidy(out: Path) -> None:
    """Delete what dead processes left beside `out`; where one died in the middle of a swap, put the old folder back."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(\d+)-[0-9a-f]+(\.old)?{re.escape(_STAGED)}")
    for path in list(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or path in _in_use or _alive(int(match[1])):
            continue
        if match[2] and not out.exists():
            os.rename(path, out)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether another process of this number runs. Our own number may be that of a process killed before us."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
