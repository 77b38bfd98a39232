"""The place of a run: locked while it trains, and free to be written, or an earlier run of the same task and rows."""

from __future__ import annotations

import contextlib
import glob
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_ft.core.distributed import rank
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, write_json
from lora_ft.core.locks import locked
from lora_ft.core.output_paths import followed, refuse_existing
from lora_ft.core.ownership import foreign_reason
from lora_ft.core.progress import Progress
from lora_ft.core.staging import tidy
from lora_ft.data.row_record import RowRecord
from lora_ft.runs.group_record import require_no_pack
from lora_ft.runs.run import CLAIM, CURVES, LOG, RESUME, TASK, is_run, unfinished
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import AUTO, SPLITS, Task
from lora_ft.training import resume_points

_VERSION = 1
_LONGER = {"num_train_epochs", "max_steps"}  # keys of `train` that may change when a finished run is trained longer
_GO_ON = "resume with the same task and --set, or start anew with --overwrite"


@dataclass(frozen=True)
class Claim:
    """A run that this process may train.

    Attributes:
        place, working: Where the run will be, and is while it trains.
        run: Identifier of the run; its checkpoints carry it. "" for a run of 0.1.0, which recorded none.
        rows: Record of the rows that it began with; None for a new run.
        finished: The finished run that is trained longer, or None.
    """

    place: Path
    working: Path
    run: str = ""
    rows: RowRecord | None = None
    finished: Path | None = None

    def check_rows(self, rows: RowRecord) -> None:
        """Raise UsageError if a run would go on with other rows than it began with."""
        if self.rows is not None:
            require_same_rows(self.rows, rows, self.finished or self.working)

    def reopen(self) -> None:
        """Put what a run goes on from into its working folder, where it was finished, or killed while it finished."""
        if self.finished is not None:
            _reopen(self.finished, self.working)
        resume_points.restore_resume_point(self.working / RESUME)

    def require_steps_left(self, steps: int) -> None:
        """Raise UsageError if a finished run that is to be trained longer has done all steps of its new plan."""
        if self.finished is None:
            return
        done = max(resume_points.step_of(path) for path in (self.finished / RESUME).glob("checkpoint-*"))
        if done >= steps:
            raise UsageError(
                f"the run {self.finished} is finished: it did {done:,} of {steps:,} steps",
                "raise train.num_train_epochs (or train.max_steps) to train it longer, or start anew with --overwrite",
            )

    def record(self, rows: RowRecord) -> None:
        """Record the run's identifier and rows in its working folder."""
        self.working.mkdir(parents=True, exist_ok=True)
        record_rows(self.working, self.run, rows)

    def require_own(self) -> None:
        """Raise LoraFtError if another job has taken over the working folder (on a file system without locks)."""
        if rank() == 0 and run_of(self.working) != self.run:
            raise LoraFtError(f"{self.working} was taken over by another job", "give each run an --out of its own")


@contextlib.contextmanager
def claimed(task: Task, out: Path, *, resume: bool, overwrite: bool, progress: Progress) -> Iterator[Claim]:
    """Make sure that a run may be written, before anything else is done, and hold the lock of its place.

    Args:
        task: Task to train.
        out: Folder of the run. A link is followed.
        resume, overwrite: Those of `train`.
        progress: Told if the file system has no locks.

    Raises:
        UsageError: The place is taken, or there is nothing of this task to resume, or another job is at work there, or
            the run is unfinished in a pack.
    """
    place = followed(out)
    if rank() != 0:
        yield Claim(place, unfinished(place))
        return
    if not resume:
        refuse_existing(out, overwrite=overwrite, inputs=inputs_of(task))
    with locked(place) as works:
        if not works:
            progress.note(f"warning: {place.parent} has no file locks; start no second job on {place}")
        require_no_pack(place)
        tidy(place)
        if resume:
            yield resumable(task, place, overwrite=overwrite)
        else:
            yield startable(task, place, overwrite=overwrite)


def startable(task: Task, place: Path, *, overwrite: bool) -> Claim:
    """Return the claim of a new run, after deleting an unfinished one if `overwrite` is set.

    Raises:
        UsageError: The place is taken.
    """
    working = unfinished(place)
    refuse_existing(place, overwrite=overwrite, inputs=inputs_of(task))
    if working.exists() and not overwrite:
        raise UsageError(f"an unfinished run lies in {working}", "add --resume to go on, or --overwrite to start anew")
    if working.exists():
        if reason := "is not a folder" if not working.is_dir() else foreign_reason(working):
            raise UsageError(f"{working} {reason}, so --overwrite does not delete it", "move it away")
        shutil.rmtree(working)
    return Claim(place, working, secrets.token_hex(8))


def resumable(task: Task, place: Path, *, overwrite: bool = False) -> Claim:
    """Return the claim of an unfinished run, or of a finished one that is to be trained longer.

    Raises:
        UsageError: There is neither, or it is of another task.
    """
    working = unfinished(place)
    if not (working / TASK).is_file():
        if is_run(place):
            return _longer(task, place, working)
        raise UsageError(f"there is no unfinished run {working} to resume", "leave out --resume")
    if run_of(working) == "" or run_of(working) != run_of(place):  # else a finished run was being trained longer
        refuse_existing(place, overwrite=overwrite, inputs=inputs_of(task))
    before = load_task(working / TASK)
    if changed := _changed(before, task):
        raise UsageError(f"the unfinished run {working} was started with another {', '.join(changed)}", _GO_ON)
    return Claim(place, working, run_of(working), rows_of(working))


def require_same_rows(before: RowRecord, now: RowRecord, began: Path) -> None:
    """Raise UsageError, which says what changed, if the rows are not those that `began` began with."""
    if changes := before.changes(now):
        raise UsageError(
            f"the rows are not those that {began} began with: {'; '.join(changes)}",
            "restore them, or start anew with --overwrite",
        )


def record_rows(working: Path, run: str, rows: RowRecord) -> None:
    """Write a run's identifier and the record of its rows into its folder."""
    write_json(working / CLAIM, {"version": _VERSION, "run": run, "splits": rows.as_dict()})


def run_of(folder: Path) -> str:
    """Return the identifier of the run in a folder, or "" where none is recorded."""
    return str(read_json(folder / CLAIM).get("run", "")) if (folder / CLAIM).is_file() else ""


def rows_of(folder: Path) -> RowRecord | None:
    """Return the record of the rows that the run in a folder began with, or None where there is none.

    Raises:
        LoraFtError: It is damaged.
    """
    path = folder / CLAIM
    if not path.is_file():
        return None
    splits = read_json(path).get("splits")
    return RowRecord.read(splits if isinstance(splits, dict) else {}, path)


def inputs_of(task: Task) -> Iterator[Path]:
    """Yield the local files and folders that a task reads."""
    yield Path(task.base)
    data = task.data
    if data.hub is not None or data.root is None:
        return
    for split in SPLITS:
        names = getattr(data, split) or []
        for name in [names] if isinstance(names, str) else names:
            pattern = str(data.root / Path(name).expanduser())  # Path.glob takes no absolute patterns
            yield from map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207


def _longer(task: Task, place: Path, working: Path) -> Claim:
    before = load_task(place / TASK)
    more = {key: getattr(task.train, key) for key in _LONGER}
    expected = before.model_copy(update={"train": before.train.model_copy(update=more)})
    if changed := _changed(expected, task):
        raise UsageError(
            f"the finished run {place} was trained with another {', '.join(changed)}",
            "only train.num_train_epochs and train.max_steps may grow",
        )
    if not any((place / RESUME).glob("checkpoint-*")):
        raise UsageError(
            f"the finished run {place} keeps no state to go on from: {place / RESUME} is missing",
            "restore that folder, or train the run again with --overwrite",
        )
    if working.exists() and (reason := foreign_reason(working)):
        raise UsageError(f"{working} {reason}, so the run is not trained longer there", "move it away")
    return Claim(place, working, run_of(place), rows_of(place), place)


def _changed(before: Task, task: Task) -> list[str]:
    """Return the sections in which two tasks differ; labels that are to be found in the rows were found before."""
    if task.labels == AUTO:
        task = task.model_copy(update={"labels": before.labels})
    return [name for name in Task.model_fields if getattr(before, name) != getattr(task, name)]


def _reopen(finished: Path, working: Path) -> None:
    """Copy into the working folder what a finished run goes on from; early stopping counts from zero there."""
    if working.exists():  # a process was killed while it copied
        shutil.rmtree(working)
    shutil.copytree(finished / RESUME, working)
    resume_points.reset_patience(max(working.glob("checkpoint-*"), key=resume_points.step_of))
    for name in (LOG, CLAIM):
        if (finished / name).is_file():
            shutil.copyfile(finished / name, working / name)
    if (finished / CURVES).is_dir():
        shutil.copytree(finished / CURVES, working / CURVES)
