"""Points to resume from: folders that the Trainer writes, marked when they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.files import sync_tree, write_text

_MARK = "complete"


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint; torn ones, left by a killed process, are deleted."""
    found = _by_step(folder)
    for path in found:
        if not (path / _MARK).is_file():
            shutil.rmtree(path)
    return next((path for path in reversed(found) if path.is_dir()), None)


def seal(folder: Path, step: int, *, keep: int, best: str | None) -> None:
    """Mark the checkpoint of `step` whole, then delete all but the newest `keep` and the best.

    The mark is written after everything else has reached the disk, and nothing older is deleted before that, so a
    process killed at any moment leaves at least one checkpoint that can be resumed.
    """
    newest = folder / f"checkpoint-{step}"
    sync_tree(newest)
    write_text(newest / _MARK, "")
    for path in _by_step(folder)[:-keep]:
        if best is None or path.name != Path(best).name:
            shutil.rmtree(path)


def _by_step(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))
