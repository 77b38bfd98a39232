"""Checks of output paths: their real location, what may be replaced there, and what is never touched.

Every job checks its output path before it starts work, so that no work is lost to a path that is taken.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_ft.core.errors import OutputExistsError, UsageError
from lora_ft.core.locks import locked
from lora_ft.core.ownership import foreign_reason, is_own_file
from lora_ft.core.staging import tidy

_OTHER = "give another --out"
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def making(out: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Check that a folder may be created and hold its lock; yield its real path (links followed).

    Args:
        out: Folder to create.
        overwrite: Allow replacing a folder that lora-ft created.
        inputs: Paths that the job reads. Missing paths (names on the Hub) and "" are ignored.

    Raises:
        UsageError: The folder may not be created, or another job is creating it.
    """
    place = refuse_existing(out, overwrite=overwrite, inputs=inputs)
    with locked(place):
        tidy(place)
        yield refuse_existing(out, overwrite=overwrite, inputs=inputs)  # the previous holder may have created it


def refuse_existing(out: Path, *, overwrite: bool, inputs: Iterable[str | Path] = ()) -> Path:
    """Raise UsageError if a folder may not be created at `out`; return its real path (links followed).

    Arguments are those of `making`.
    """
    place = followed(out)
    _refuse_vital(out, place)
    _require_writable(out, place)
    if not place.exists():
        return place
    _refuse_special(out, place, _OTHER)
    if not place.is_dir():
        raise UsageError(f"{out} is a file, not a folder", _OTHER)
    if os.path.ismount(place):
        raise UsageError(f"{out} is a mount point, which cannot be replaced", "give a folder inside it as --out")
    if not any(place.iterdir()):
        return place
    if not overwrite:
        raise OutputExistsError(f"{out} already exists", "give another --out or add --overwrite")
    for path in inputs:
        if path and (clash := _clash(place, Path(path))):  # "" would mean the current folder
            raise UsageError(f"{out} {clash} the input {path}, so it is not replaced", _OTHER)
    if reason := foreign_reason(place):
        raise UsageError(f"{out} {reason}, so --overwrite does not replace it", f"move it away, or {_OTHER}")
    return place


def refuse_shelf(out: Path) -> Path:
    """Raise UsageError unless `out` is a folder for several outputs, or may become one; return its real path."""
    place = followed(out)
    _require_writable(out, place)
    if place.exists():
        _refuse_special(out, place, _OTHER)
        if not place.is_dir():
            raise UsageError(f"{out} is a file, not a folder", _OTHER)
    return place


def refuse_file(out: Path, option: str, *, inputs: Iterable[str | Path] = (), overwrite: bool = False) -> Path:
    """Raise UsageError if a file may not be written at `out`; return its real path (links followed).

    Args:
        out: File to write. A file that lora-ft created is replaced.
        option: Command-line option that names the file, for errors.
        inputs: Files that the job reads, which are never replaced.
        overwrite: Replace any file, since the user confirmed it.
    """
    remedy = f"give another {option}"
    place = followed(out, option)
    _require_writable(out, place, option)
    if not place.exists():
        return place
    _refuse_special(out, place, remedy)
    if place.is_dir():
        raise UsageError(f"{out} is a folder, not a file", f"{remedy}, e.g. {out / 'file'}")
    for path in inputs:
        if _identity(Path(path)) == _identity(place):
            raise UsageError(f"{out} is an input, so it is not replaced", remedy)
    if not overwrite and not is_own_file(place):
        raise OutputExistsError(f"{out} already exists and was not created by lora-ft", f"move it away, or {remedy}")
    return place


def require_writable(folder: Path, remedy: str) -> None:
    """Raise UsageError if files of an existing folder may not be written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} is read-only", remedy)


def followed(out: Path, option: str = "--out") -> Path:
    """Return the real path of an output: a link stays, and its target is written.

    Raises:
        UsageError: The path is a dangling link, a loop of links, or not UTF-8.
    """
    try:
        place = out.resolve()
        str(place).encode()  # tokenizers, safetensors and tensorboard refuse other names, but only after training
        if out.is_symlink() and not place.exists():
            raise UsageError(
                f"{out} is a link to {place}, which does not exist", f"create it, or give another {option}"
            )
    except UnicodeEncodeError as error:
        raise UsageError(f"{out} has bytes in its name that are not UTF-8", f"give another {option}") from error
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{out} cannot be followed ({error})", f"give another {option}") from error
    return place


def _refuse_vital(out: Path, place: Path) -> None:
    """Refuse the file system's root, the home folder, the current folder, and every folder above one of them."""
    vital = {}
    with contextlib.suppress(RuntimeError):  # this user has no home folder
        vital["the home folder"] = Path.home()
    with contextlib.suppress(FileNotFoundError):  # the current folder was deleted
        vital["the current folder"] = Path.cwd()
    identity = _identity(place)
    for name, folder in vital.items():
        if identity is not None and identity in _lineage(folder):
            role = name if identity == _identity(folder) else f"a folder that contains {name}"
            raise UsageError(f"{out} is {role}", "give a new folder as --out")
    if place == Path(place.anchor):
        raise UsageError(f"{out} is the root of the file system", "give a new folder as --out")


def _require_writable(out: Path, place: Path, option: str = "--out") -> None:
    """Refuse a path whose nearest existing parent is a file or a read-only folder."""
    parent = place.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"{out} cannot be created, since {parent} is a file", f"give another {option}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{out} cannot be created, since {parent} is read-only", f"give another {option}")


def _refuse_special(out: Path, place: Path, remedy: str) -> None:
    mode = place.stat().st_mode
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise UsageError(f"{out} is {name}", remedy)


def _clash(place: Path, path: Path) -> str:
    """Return how a folder to replace overlaps an input, as words of an error; "" if it does not."""
    out_identity, input_identity = _identity(place), _identity(path)
    if input_identity is None:
        return ""
    if out_identity == input_identity:
        return "is the same as"
    if out_identity in _lineage(path):
        return "contains"
    return "lies in" if input_identity in _lineage(place) and path.is_dir() else ""


def _lineage(path: Path) -> set[tuple[int, int] | None]:
    """Return the identities of a path (links followed) and of all folders above it."""
    real = path.resolve()
    return {_identity(folder) for folder in (real, *real.parents)}


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which all names of a file share (case, links, bind mounts); None if it is missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
