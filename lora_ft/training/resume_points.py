"""Checkpoints to resume from, which the Trainer writes. A mark in a complete checkpoint names its run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json, sync_tree, write_json, write_text

_MARK = "complete"
_UNVALIDATED = "unvalidated"  # mark of a checkpoint that a stop wrote before the validation of its step
_STATE = "trainer_state.json"  # name set by transformers
# Files of a checkpoint besides its weights. A best checkpoint needs none of them, since only its weights are loaded.
_FOR_RESUMING = ("optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "training_args.bin", "README.md")


def latest(folder: Path, run: str = "") -> Path | None:
    """Return the newest complete checkpoint of a run, or None. Delete incomplete ones, which a killed process left.

    Checkpoints of other runs are ignored.
    """
    checkpoints = _by_step(folder)
    for path in checkpoints:
        if not (path / _MARK).is_file():
            shutil.rmtree(path)
    return next((path for path in reversed(checkpoints) if path.is_dir() and _run_of(path) == run), None)


def seal(folder: Path, step: int, *, keep: int, best: str | None, run: str = "", validated: bool = True) -> None:
    """Mark the checkpoint of `step` complete, then delete all but the newest `keep` and the best.

    The mark is written after everything else has reached the disk, and older checkpoints are deleted only then. A
    process killed at any moment therefore leaves at least one complete checkpoint.

    Args:
        folder: Folder of the checkpoints.
        step: Step of the newest checkpoint.
        keep: Number of newest checkpoints to keep.
        best: Path of the best checkpoint, which is kept too. Only the last part of the path is used.
        run: Identifier of the run, which is written into the mark.
        validated: False if the validation that is due at this step was left out.
    """
    checkpoint = folder / f"checkpoint-{step}"
    if not validated:
        (checkpoint / _UNVALIDATED).touch()
    mark_complete(checkpoint, run)
    prune(folder, keep=keep, best=best)


def prune(folder: Path, *, keep: int, best: str | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best; see `seal`."""
    for path in _by_step(folder)[:-keep]:
        if best is None or path.name != Path(best).name:
            shutil.rmtree(path)


def mark_complete(checkpoint: Path, run: str) -> None:
    """Flush a checkpoint to the disk, then mark it complete."""
    sync_tree(checkpoint)
    write_text(checkpoint / _MARK, run)


def is_validated(checkpoint: Path) -> bool:
    """Return False if a stop left out the validation that was due at a checkpoint."""
    return not (checkpoint / _UNVALIDATED).exists()


def add_validation(checkpoint: Path, state: dict[str, Any]) -> None:
    """Replace the state of a checkpoint by the one after its validation."""
    write_json(checkpoint / _STATE, state)
    (checkpoint / _UNVALIDATED).unlink()


def best_of(checkpoint: Path) -> str | None:
    """Return the path of the best checkpoint that a checkpoint's state names, or None."""
    best: str | None = read_json(checkpoint / _STATE).get("best_model_checkpoint")
    return best


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def repoint_best(checkpoint: Path) -> None:
    """Update the path of the best checkpoint in a checkpoint's state, since the run may have been moved.

    transformers ignores a best checkpoint that does not exist, and the last weights would be published instead.

    Raises:
        LoraFtError: The best checkpoint is missing.
    """
    state = read_json(checkpoint / _STATE)
    best = state.get("best_model_checkpoint")
    if best is None:
        return
    path = checkpoint.parent / Path(str(best)).name
    if not path.is_dir():
        raise LoraFtError(f"the best checkpoint {path} is missing", "restore it, or start over with --overwrite")
    if str(path) != best:
        write_json(checkpoint / _STATE, state | {"best_model_checkpoint": str(path)})


def reset_patience(checkpoint: Path) -> None:
    """Reset the early-stopping counter in a checkpoint, so that every resume from it counts from zero."""
    state = read_json(checkpoint / _STATE)
    saved = (state.get("stateful_callbacks") or {}).get("EarlyStoppingCallback") or {}
    if "attributes" in saved:
        saved["attributes"]["early_stopping_patience_counter"] = 0
        write_json(checkpoint / _STATE, state)


def keep_resume_point(folder: Path, into: Path, run: str) -> None:
    """Keep the newest checkpoint of a finished run, and its best weights, so that it can be trained longer.

    Files are hard-linked, so a process killed before the checkpoints in `folder` are deleted loses none of them.

    Args:
        folder: Working folder of the run, with its checkpoints.
        into: Folder to write.
        run: Identifier of the run.
    """
    newest = latest(folder, run)
    if newest is None:
        return
    if into.exists():  # left by a killed process
        shutil.rmtree(into)
    best = read_json(newest / _STATE).get("best_model_checkpoint")
    if best is not None and Path(str(best)).name != newest.name:
        path = folder / Path(str(best)).name
        shutil.copytree(path, into / path.name, copy_function=_link, ignore=shutil.ignore_patterns(*_FOR_RESUMING))
    skipped = shutil.ignore_patterns("training_args.bin")  # a pickle that contains paths of this machine
    shutil.copytree(newest, into / newest.name, copy_function=_link, ignore=skipped)


def restore_resume_point(folder: Path) -> None:
    """Undo `keep_resume_point` for a run whose process was killed before it was moved to its final folder.

    Args:
        folder: Folder `resume` of the run, from `keep_resume_point`; may be missing.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not (folder.parent / path.name).exists():
            path.rename(folder.parent / path.name)
    shutil.rmtree(folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _run_of(path: Path) -> str:
    return (path / _MARK).read_text(encoding="utf-8")


def _by_step(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=step_of)
