"""The folder of a run while it trains, and everything that `--resume` does.

**Location.** While a task trains, its run is in `<out>.unfinished`, next to `<out>`. When all files are written and
flushed to the disk, that folder is renamed to `<out>`. `<out>` is therefore always a complete run, and with
`--overwrite` an earlier run stays there until the new one is finished. Meanwhile, a lock on `<out>` refuses a second
job.

**Files during training.** At every interval of `train.eval_every`, and when a signal arrives, the Trainer writes a
checkpoint: weights, optimizer, schedule, random numbers. It is marked complete after everything in it has reached the
disk, and only then are older checkpoints deleted. The newest `train.save_total_limit` and the best one remain. A
process killed at any moment therefore leaves at least one complete checkpoint, and incomplete ones are deleted. The
folder also contains:

    task.yaml      the task with every default filled in; written last, because with it the run can be resumed
    claim.json     the run's identifier, which its checkpoints carry, and digests of the rows that it began with
    choices.json   what the machine decided when the run began: the precision, and whether the model is compiled
    log.jsonl      the log; on resume, entries after the checkpoint are dropped, since those steps are repeated
    initial        initial weights of an adapter that PiSSA, OLoRA, CorDA or EVA computed

**Resuming an unfinished run.** With `--resume`, training continues from the newest complete checkpoint. The result is
the same, bit by bit, as without the stop: the order of rows, random numbers, early-stopping counter and choices are
restored. A validation that a stop left out (`lora_ft.training.resume_keeper`) comes first.

**Refusals.** `--resume` refuses the cases below without changing anything on the disk. Checkpoints of another run are
ignored.

- The task differs in any section, or the rows differ in any split. The message names them.
- The best checkpoint is missing.
- Another job uses the folder, or lora-ft did not create it.
- The run belongs to an unfinished adapter group.

**Files of a finished run.** Its folder `resume` contains the last checkpoint, and the weights of the best one if that
is another. With `method: full` this takes three times the model's size, and once more for the best weights.

**Longer training.** `--resume` on a finished run trains it longer. The task may differ in `train.num_train_epochs` or
`train.max_steps` only, and must request more steps than the run has finished. The learning rate follows its schedule
over all steps, including the finished ones, so it jumps when training continues. With a constant rate the result is the
same as without the stop. Early stopping counts from zero. The finished run stays in its place until the longer one
replaces it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.distributed import rank
from lora_ft.core.errors import LoraFtError, OutputExistsError, UsageError
from lora_ft.core.files import read_json, replace_folder, sync_tree, write_json, write_text
from lora_ft.core.locks import locked
from lora_ft.core.output_paths import followed, refuse_existing
from lora_ft.core.ownership import foreign_reason
from lora_ft.core.progress import Progress
from lora_ft.core.staging import tidy
from lora_ft.data.row_record import RowRecord
from lora_ft.models.initialization import INITIAL
from lora_ft.publishing.model_card import Facts, run_card
from lora_ft.runs.group_record import require_not_in_group
from lora_ft.runs.run import CARD, CLAIM, CURVES, LOG, METRICS, RESUME, TASK, Run, is_run, working_folder
from lora_ft.tasks.files import load_task, save_task, saved_task
from lora_ft.tasks.inputs import input_paths
from lora_ft.tasks.schema import AUTO, Task
from lora_ft.training import resume_points
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.plan import Choices, Plan
from lora_ft.training.prepared_data import PreparedData

CHOICES = "choices.json"
_VERSION = 1
_LONGER = {"num_train_epochs", "max_steps"}  # keys of `train` that may change when a finished run is trained longer
_SAME_TASK = "resume with the same task and --set, or start over with --overwrite"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run that this process may train. The module's docstring describes its life.

    Attributes:
        out: Folder of the run once it is finished.
        working: Folder of the run while it trains.
        run_id: Identifier of the run, which its checkpoints carry. "" for a run of 0.1.0, which recorded none.
        rows: Record of the rows that the run began with; None for a new run.
        finished: Folder of the finished run that is trained longer, or None.
    """

    out: Path
    working: Path
    run_id: str = ""
    rows: RowRecord | None = None
    finished: Path | None = None

    @classmethod
    @contextlib.contextmanager
    def claim(cls, task: Task, out: Path, *, resume: bool, overwrite: bool, progress: Progress) -> Iterator[RunFolder]:
        """Check that a run may be written, before any other work, and hold the lock of its folder.

        Args:
            task: Task to train.
            out: Folder of the run. A link is followed.
            resume: Continue an unfinished run, or train a finished one longer.
            overwrite: Replace a finished run and discard an unfinished one.
            progress: Receives a warning if the file system has no locks.

        Raises:
            UsageError: The folder exists, no run of this task can be resumed, another job uses the folder, or the run
                belongs to an unfinished adapter group.
        """
        place = followed(out)
        if rank() != 0:
            yield cls(place, working_folder(place))
            return
        if not resume:
            refuse_existing(out, overwrite=overwrite, inputs=input_paths(task))
        with locked(place) as supported:
            if not supported:
                progress.note(f"warning: file locks are not supported in {place.parent}; start no other job on {place}")
            require_not_in_group(place)
            tidy(place)
            yield cls.resume(task, place, overwrite=overwrite) if resume else cls.new(task, place, overwrite=overwrite)

    @classmethod
    def new(cls, task: Task, out: Path, *, overwrite: bool) -> RunFolder:
        """Return the folder of a new run, after deleting an unfinished run if `overwrite` is set.

        Raises:
            UsageError: The folder exists.
        """
        working = working_folder(out)
        refuse_existing(out, overwrite=overwrite, inputs=input_paths(task))
        if working.exists() and not overwrite:
            raise OutputExistsError(
                f"an unfinished run exists in {working}", "add --resume to continue, or --overwrite to start over"
            )
        if working.exists():
            if reason := "is not a folder" if not working.is_dir() else foreign_reason(working):
                raise UsageError(f"{working} {reason}, so --overwrite does not delete it", "move it away")
            shutil.rmtree(working)
        return cls(out, working, secrets.token_hex(8))

    @classmethod
    def resume(cls, task: Task, out: Path, *, overwrite: bool = False) -> RunFolder:
        """Return the folder of an unfinished run, or of a finished run to train longer.

        Raises:
            UsageError: Neither exists, or the run is of another task.
        """
        working = working_folder(out)
        if not (working / TASK).is_file():
            if is_run(out):
                return cls._longer(task, out, working)
            raise UsageError(f"the unfinished run {working} does not exist", "leave out --resume")
        recorded = run_id_of(working)
        if recorded == "" or recorded != run_id_of(out):  # else a finished run was being trained longer
            refuse_existing(out, overwrite=overwrite, inputs=input_paths(task))
        if changed := _changed_sections(load_task(working / TASK), task):
            raise UsageError(
                f"the task differs from that of the unfinished run {working} in {', '.join(changed)}", _SAME_TASK
            )
        return cls(out, working, recorded, _recorded_rows(working))

    @classmethod
    def in_group(cls, out: Path) -> RunFolder:
        """Return the folder of a run that trains in an adapter group, whose command holds the lock."""
        working = working_folder(out)
        return cls(out, working, run_id_of(working) or secrets.token_hex(8))

    @classmethod
    def _longer(cls, task: Task, out: Path, working: Path) -> RunFolder:
        before = load_task(out / TASK)
        more = {key: getattr(task.train, key) for key in _LONGER}
        expected = before.model_copy(update={"train": before.train.model_copy(update=more)})
        if changed := _changed_sections(expected, task):
            raise UsageError(
                f"the task differs from that of the finished run {out} in {', '.join(changed)}",
                "change only train.num_train_epochs and train.max_steps",
            )
        if not any((out / RESUME).glob("checkpoint-*")):
            raise UsageError(
                f"the finished run {out} cannot be trained longer, since its folder {out / RESUME} is missing",
                "restore that folder, or train the run again with --overwrite",
            )
        if working.exists() and (reason := foreign_reason(working)):
            raise UsageError(f"{working} {reason}, so the run is not trained longer there", "move it away")
        return cls(out, working, run_id_of(out), _recorded_rows(out), out)

    def check_rows(self, rows: RowRecord) -> None:
        """Raise UsageError if the rows differ from those that the run began with."""
        if self.rows is not None:
            require_same_rows(self.rows, rows, self.finished or self.working)

    def require_steps_left(self, steps: int) -> None:
        """Raise UsageError if a finished run to train longer has taken all `steps` of its new plan already."""
        if self.finished is None:
            return
        completed = max(resume_points.step_of(path) for path in (self.finished / RESUME).glob("checkpoint-*"))
        if completed >= steps:
            raise UsageError(
                f"the run {self.finished} is finished, with {completed:,} of {steps:,} steps",
                "raise train.num_train_epochs (or train.max_steps) to train it longer, or start over with --overwrite",
            )

    def require_own(self) -> None:
        """Raise LoraFtError if another job has taken over the working folder (on a file system without locks)."""
        if rank() == 0 and run_id_of(self.working) != self.run_id:
            raise LoraFtError(f"{self.working} was taken over by another job", "pass a different --out for each run")

    def choices(self) -> Choices | None:
        """Return the choices of the run when it began, or None. Another or busier machine might choose differently."""
        if self.finished is not None:
            metrics = Run(self.finished).metrics
            return Choices(ComputeDtype(metrics["precision"], "as when this run began"), metrics["compiled"])
        path = self.working / CHOICES
        if not path.is_file():
            return None
        recorded = read_json(path)
        return Choices(ComputeDtype(recorded["precision"], "as when this run began"), recorded["compile"])

    def reopen(self) -> None:
        """Restore checkpoints to the working folder of a run that was finished, or was killed in `finish`."""
        if self.finished is not None:
            self._copy_finished(self.finished)
        resume_points.restore_resume_point(self.working / RESUME)

    def _copy_finished(self, finished: Path) -> None:
        if self.working.exists():  # a process was killed while it copied
            shutil.rmtree(self.working)
        shutil.copytree(finished / RESUME, self.working)
        newest = max(self.working.glob("checkpoint-*"), key=resume_points.step_of)
        resume_points.reset_patience(newest)
        for name in (LOG, CLAIM):
            if (finished / name).is_file():
                shutil.copyfile(finished / name, self.working / name)
        if (finished / CURVES).is_dir():
            shutil.copytree(finished / CURVES, self.working / CURVES)

    def record(self, data: PreparedData, plan: Plan) -> None:
        """Record identifier, rows, choices and task in the working folder. From then on, the run can be resumed."""
        self.working.mkdir(parents=True, exist_ok=True)
        write_json(self.working / CLAIM, {"version": _VERSION, "run": self.run_id, "splits": data.record.as_dict()})
        write_json(self.working / CHOICES, {"precision": plan.precision.name, "compile": plan.compile})
        save_task(data.task, self.working / TASK)  # last: with it the run can be resumed

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint of this run, or None. Incomplete checkpoints are deleted."""
        return resume_points.latest(self.working, run_id_of(self.working))

    def seal_checkpoint(self, step: int, *, keep: int, best: str | None, validated: bool = True) -> None:
        """Mark the checkpoint of `step` complete, then delete older ones; see `lora_ft.training.resume_points.seal`.

        Raises:
            LoraFtError: Another job has taken over the working folder.
        """
        self.require_own()
        resume_points.seal(self.working, step, keep=keep, best=best, run=self.run_id, validated=validated)

    def mark_checkpoints(self) -> None:
        """Mark every checkpoint in the working folder complete."""
        for checkpoint in self.working.glob("checkpoint-*"):
            resume_points.mark_complete(checkpoint, run_id_of(self.working))

    def keep_newest(self) -> None:
        """Delete all complete checkpoints but the newest and the best."""
        if newest := self.latest_checkpoint():
            resume_points.prune(self.working, keep=1, best=resume_points.best_of(newest))

    def trim_log(self, step: int) -> None:
        """Drop log entries after `step`, where training continues, since those steps are repeated."""
        path = self.working / LOG
        if rank() != 0 or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]  # a killed process may have cut the last line
        write_text(path, "".join(line for line in complete if json.loads(line)["step"] <= step))

    def schedule_note(self, task: Task, plan: Plan) -> str:
        """Describe how the learning rate continues in a finished run that is trained longer."""
        completed = Run(self.finished or self.out).metrics["steps"]
        return (
            f"the finished run took {completed:,} steps; the {task.train.lr_scheduler_type} schedule now spans "
            f"{plan.steps:,} steps, so the learning rate jumps to its value at step {completed:,} of the new schedule"
        )

    def finish(self, task: Task, metrics: dict[str, Any]) -> None:
        """Write metrics and card, keep the last state, and rename the working folder to `out`.

        Raises:
            LoraFtError: The folder at `out` was not created by lora-ft; the run stays in the working folder.
        """
        working = self.working
        write_json(working / METRICS, metrics)
        write_text(working / CARD, run_card(Facts(task, metrics)))
        (working / CHOICES).unlink(missing_ok=True)
        resume_points.keep_resume_point(working, working / RESUME, run_id_of(working))
        if (working / RESUME).is_dir() and (working / INITIAL).is_dir():
            shutil.copytree(working / INITIAL, working / RESUME / INITIAL)
        for path in [*working.glob("checkpoint-*"), *working.glob(INITIAL)]:
            shutil.rmtree(path)
        sync_tree(working)
        replace_folder(working, self.out)


def require_same_rows(before: RowRecord, now: RowRecord, began: Path) -> None:
    """Raise UsageError, naming the changes, if the rows differ from those that the run in `began` began with."""
    if changes := before.changes(now):
        raise UsageError(
            f"the rows differ from those that {began} began with ({'; '.join(changes)})",
            "restore them, or start over with --overwrite",
        )


def run_id_of(folder: Path) -> str:
    """Return the identifier recorded in the folder of a run, or "" if there is none."""
    return str(read_json(folder / CLAIM).get("run", "")) if (folder / CLAIM).is_file() else ""


def _recorded_rows(folder: Path) -> RowRecord | None:
    """Return the record of the rows that the run in a folder began with, or None if there is none.

    Raises:
        LoraFtError: The record is damaged.
    """
    path = folder / CLAIM
    if not path.is_file():
        return None
    splits = read_json(path).get("splits")
    return RowRecord.read(splits if isinstance(splits, dict) else {}, path)


def _changed_sections(before: Task, task: Task) -> list[str]:
    """Return the names of the sections in which two tasks differ. Labels "auto" equal the recorded labels."""
    if task.labels == AUTO:
        task = task.model_copy(update={"labels": before.labels})
    task = saved_task(task, before.data.root or Path())
    return [name for name in Task.model_fields if getattr(before, name) != getattr(task, name)]
