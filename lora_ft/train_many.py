"""The verb `train_many`: train several tasks on one base in one pass, and write a run for each."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ft.core.disk import keeping
from lora_ft.core.distributed import processes
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, write_json
from lora_ft.core.locks import locked
from lora_ft.core.output_paths import refuse_shelf
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress
from lora_ft.core.staging import tidy
from lora_ft.data.row_record import RowRecord
from lora_ft.models.bases import Base, find_base
from lora_ft.multi_lora.dashboard import Dashboard, as_dashboard
from lora_ft.multi_lora.engine import Engine, LocalEngine, TrainingSite
from lora_ft.multi_lora.group_job import GroupJob
from lora_ft.multi_lora.planner import (
    MemoryNeed,
    balanced_size,
    describe_groups,
    plan_groups,
    require_groupable,
)
from lora_ft.reports.run_report import write_run_report, write_runs_report
from lora_ft.runs.grid_results import mark_best
from lora_ft.runs.group_record import GROUPS_FOLDER, GROUPS_RECORD
from lora_ft.runs.run import TASK, Run, is_run, working_folder
from lora_ft.tasks.files import as_task, load_tasks
from lora_ft.tasks.schema import AUTO, Task
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.memory_estimates import Shape
from lora_ft.training.own_rows import with_own_rows
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData, prepare
from lora_ft.training.run_folder import RunFolder, require_same_rows

_VERSION = 1


@dataclass(frozen=True)
class TrainManyResult:
    """Result of `train_many`.

    Attributes:
        runs: Runs of the trained tasks, in the order of the tasks.
        failed: Reason of failure by task name, for all other tasks.
        best: Task name of the best run of a grid, or None without a grid.
    """

    runs: list[Run]
    failed: dict[str, str]
    best: str | None = None

    def __str__(self) -> str:
        lines = [str(run.folder) for run in self.runs]
        return "\n".join([*lines, *(f"{name} failed: {reason}" for name, reason in self.failed.items())])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def train_many(
    tasks: str | os.PathLike[str] | Sequence[Task | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    group_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> TrainManyResult:
    """Train an adapter for each task on one shared copy of their base. Results equal those of `lora_ft.train.train`.

    Tasks that do not fit into memory together are trained in several groups. An adapter with a non-finite loss leaves
    its group, which continues without it.

    Args:
        tasks: Tasks, task files or recipes. A file with a `grid` is one task for each combination of its values. A
            single file may be passed without a list.
        out: Folder of the runs, which are named after their tasks. Unfinished runs are in `<name>.unfinished` there.
            The results of a grid are in `grid.json`.
        resume: Continue from the last snapshot, with the same result as without the stop. If all runs are finished,
            train them longer, as `lora_ft.train.train` does.
        overwrite: Replace existing runs and discard unfinished ones.
        group_size: Maximum number of adapters in a group. Default: as many as fit, balanced if several groups train
            at a time.
        engine: Engine that trains the groups. Default: this process, one group after another.
        progress: Receives stages, steps and notes; a `Dashboard` also receives the status of every adapter. None is
            silent.

    Raises:
        UsageError: A task cannot be trained with the others, or `train` would raise it.
        LoraFtError: For the same reasons as in `train`.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP was received; a snapshot was saved.
    """
    return train_grid(
        _load(tasks), out, resume=resume, overwrite=overwrite, group_size=group_size, engine=engine, progress=progress
    )


def train_grid(
    tasks: Sequence[tuple[Task, Mapping[str, Any]]],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    group_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> TrainManyResult:
    """Train tasks as `train_many` does, and mark the best run of a grid.

    Args:
        tasks: Tasks, each with the values that a grid sets in it, by key; see `lora_ft.tasks.files.load_tasks`.
        out, resume, overwrite, group_size, engine, progress: See `train_many`.

    Raises:
        LoraFtError, Interrupted: See `train_many`.
    """
    if processes() > 1:
        raise UsageError("several tasks train in one process", "start it without torchrun, or train one task at a time")
    out = refuse_shelf(Path(out))
    own_tasks = [with_own_rows(task, out / task.name) for task, _ in tasks]
    require_groupable(own_tasks)
    with ExitStack() as locks, keeping(out, "free some space, then add --resume to continue from the last snapshot"):
        for place in (out / GROUPS_FOLDER, *(out / task.name for task in own_tasks)):
            locks.enter_context(locked(place))
            tidy(place)
        result = _train(own_tasks, out, resume, overwrite, group_size, engine, as_dashboard(progress))
    settings = {task.name: values for task, values in tasks if values}
    grid_runs = [run for run in result.runs if run.task.name in settings]
    best = mark_best(grid_runs, settings, out) if grid_runs else None
    return replace(result, best=best.task.name if best else None)


def _load(
    tasks: str | os.PathLike[str] | Sequence[Task | str | os.PathLike[str]],
) -> list[tuple[Task, Mapping[str, Any]]]:
    """Return all tasks of tasks, files and grids, each with the values that a grid sets in it."""
    loaded: list[tuple[Task, Mapping[str, Any]]] = []
    for task in [tasks] if isinstance(tasks, (str, os.PathLike)) else tasks:
        loaded += [(as_task(task), {})] if isinstance(task, Task) else load_tasks(os.fspath(task))
    return loaded


def _train(
    tasks: Sequence[Task],
    out: Path,
    resume: bool,
    overwrite: bool,
    group_size: int | None,
    engine: Engine | None,
    dashboard: Dashboard,
) -> TrainManyResult:
    """Train the tasks, whose folders the caller has locked."""
    record, finished = _claim(tasks, out, resume=resume, overwrite=overwrite)
    base = find_base(tasks[0].base)
    if base.notice:
        dashboard.note(base.notice)
    with closing(engine or LocalEngine()) as engine:
        site = engine.inspect(out, tasks[0].train.precision, record.get("storage") if record else None, dashboard)
        if precision := record["precision"] if record else _precision(finished):
            site = replace(site, precision=ComputeDtype(precision, "as when these runs began"))
        longer = bool(record.get("longer")) if record else bool(finished)
        if longer and site.storage:
            raise UsageError(
                f"finished runs cannot be trained longer with --storage (got {site.storage})",
                "pass an --out that all nodes share instead, or leave out --engine ray",
            )
        dashboard.stage("reading rows", len(tasks))
        prepared = _prepare(tasks, base, dashboard)
        if record:
            _check_rows(record, prepared, out)
        for name, folder in finished.items():
            folder.check_rows(prepared[name].record)
        plans = {name: site.plan(data) for name, data in prepared.items()}
        dashboard.note(f"precision {site.precision.name}: {site.precision.reason}")
        for name, folder in finished.items():
            folder.require_steps_left(plans[name].steps)
            dashboard.note(f"{name}: {folder.schedule_note(prepared[name].task, plans[name])}")
        if record is None:
            groups = _plan_groups(prepared, plans, base, site, group_size, dashboard)
            record = {
                "version": _VERSION,
                "run": secrets.token_hex(8),
                "precision": site.precision.name,
                "storage": site.storage,
                "packs": groups,
                "rows": _record_rows(prepared, out),
                "longer": longer,
            }
            for folder in finished.values():  # before the record, so that a process killed here repeats it
                folder.reopen()
            write_json(out / GROUPS_FOLDER / GROUPS_RECORD, record)
        jobs = [
            GroupJob(
                number,
                [prepared[name] for name in names],
                {name: plans[name] for name in names},
                out,
                record.get("run", ""),
                frozenset(names) if longer else frozenset(),
            )
            for number, names in enumerate(record["packs"], 1)
        ]
        result = engine.run(jobs, site, dashboard)
    if not result.broken:
        (out / GROUPS_FOLDER / GROUPS_RECORD).unlink()
        shutil.rmtree(out / GROUPS_FOLDER)
    for name in (task.name for task in tasks if is_run(out / task.name)):
        write_run_report(Run(out / name), dashboard)
    if len(tasks) > 1:
        write_runs_report(out, dashboard)
    failed = result.failed | {
        name: f"{reason}; repeat the command with --resume to continue" for name, reason in result.broken.items()
    }
    return TrainManyResult([Run(out / task.name) for task in tasks if task.name not in failed], failed)


def _plan_groups(
    prepared: Mapping[str, PreparedData],
    plans: Mapping[str, Plan],
    base: Base,
    site: TrainingSite,
    group_size: int | None,
    dashboard: Dashboard,
) -> list[list[str]]:
    """Return the names of the tasks of each group, and describe the groups on the dashboard."""
    needs = [MemoryNeed.of(data, plans[name]) for name, data in prepared.items()]
    options = site.step_options(next(iter(prepared.values())).task)
    shape = Shape.of(base.config)
    groups = plan_groups(shape, needs, site.room, options, group_size)
    if group_size is None and site.places > 1:
        size = balanced_size(len(needs), site.places, max(len(group.names) for group in groups))
        groups = plan_groups(shape, needs, site.room, options, size)
    for line in describe_groups(groups, site.room):
        dashboard.note(line)
    return [group.names for group in groups]


def _prepare(tasks: Sequence[Task], base: Base, dashboard: Dashboard) -> dict[str, PreparedData]:
    """Return the prepared data of each task, by name. Tasks with the same data settings share one copy."""
    by_settings: dict[str, PreparedData] = {}
    by_task = {}
    for number, task in enumerate(tasks):
        in_memory = "".join(rows.digest for rows in task.data.in_memory.values())
        key = in_memory + task.model_dump_json(include={"data", "prompt", "codec", "labels", "lengths"})
        if key not in by_settings:
            by_settings[key] = prepare(task, base, dashboard)
        shared = by_settings[key]
        labelled = task if task.labels != AUTO else task.model_copy(update={"labels": shared.task.labels})
        by_task[task.name] = replace(shared, task=labelled)
        dashboard.advance(number + 1)
    return by_task


def _record_rows(prepared: Mapping[str, PreparedData], out: Path) -> dict[str, str]:
    """Write the row records, one file for each distinct record. Return the digest of each task's record, by name."""
    digests = {name: data.record.digest for name, data in prepared.items()}
    for name, digest in digests.items():
        if not (path := _rows_file(out, digest)).is_file():
            write_json(path, prepared[name].record.as_dict())
    return digests


def _check_rows(record: Mapping[str, Any], prepared: Mapping[str, PreparedData], out: Path) -> None:
    """Raise UsageError if the rows of a task have changed since the groups began. Version 0.1.0 recorded no rows."""
    for name, digest in record.get("rows", {}).items():
        now = prepared[name].record
        if now.digest != digest:
            path = _rows_file(out, digest)
            require_same_rows(RowRecord.read(read_json(path), path), now, out / name)


def _rows_file(out: Path, digest: str) -> Path:
    return out / GROUPS_FOLDER / f"rows-{digest}.json"


def _claim(
    tasks: Sequence[Task], out: Path, *, resume: bool, overwrite: bool
) -> tuple[dict[str, Any] | None, dict[str, RunFolder]]:
    """Check that all runs may be written.

    Returns:
        Record of the groups to resume, or None; and the folders of finished runs to train longer, by name.
    """
    record = out / GROUPS_FOLDER / GROUPS_RECORD
    if resume:
        if not record.is_file():
            shutil.rmtree(out / GROUPS_FOLDER, ignore_errors=True)
            return None, _finished(tasks, out)
        groups = read_json(record)
        if groups["version"] != _VERSION:
            raise LoraFtError(
                f"{record} has format version {groups['version']}, which is not supported (supported: {_VERSION})",
                "start over with --overwrite",
            )
        names = {name for group in groups["packs"] for name in group}
        if names != {task.name for task in tasks}:
            raise UsageError(f"the unfinished groups in {out} are of other tasks", "resume with the same tasks")
        for task in tasks:
            place = out / task.name
            if (working_folder(place) / TASK).is_file() or groups.get("longer"):
                RunFolder.resume(task, place, overwrite=overwrite or is_run(place))
        return groups, {}
    if record.is_file() and not overwrite:
        raise UsageError(
            f"unfinished groups exist in {out / GROUPS_FOLDER}",
            "add --resume to continue, or --overwrite to start over",
        )
    for task in tasks:
        RunFolder.new(task, out / task.name, overwrite=overwrite)
    shutil.rmtree(out / GROUPS_FOLDER, ignore_errors=True)
    return None, {}


def _finished(tasks: Sequence[Task], out: Path) -> dict[str, RunFolder]:
    """Return the folders of finished runs to train longer, by name.

    Raises:
        UsageError: No run exists, a task has no finished run, or its run is of another task.
    """
    if not any(is_run(out / task.name) for task in tasks):
        raise UsageError(f"{out} contains no unfinished groups to resume", "leave out --resume")
    folders = {}
    for task in tasks:
        place = out / task.name
        if not is_run(place):
            raise UsageError(
                f"the task '{task.name}' has no finished run {place} to train longer",
                "leave it out, or train it first",
            )
        folders[task.name] = folder = RunFolder.resume(task, place)
        if folder.finished is None:
            raise UsageError(
                f"an unfinished run exists in {folder.working}", "finish it alone with --resume, or move it away"
            )
    return folders


def _precision(finished: Mapping[str, RunFolder]) -> str | None:
    """Return the precision in which finished runs were trained, or None if there are no runs.

    Raises:
        UsageError: The runs were trained in different precisions.
    """
    precisions = {name: str(Run(claim.out).metrics["precision"]) for name, claim in finished.items()}
    for name, precision in precisions.items():
        first = next(iter(precisions))
        if precision != precisions[first]:
            raise UsageError(
                f"the precisions of the runs differ ('{first}': {precisions[first]}, '{name}': {precision})",
                "train the runs of each precision separately",
            )
    return next(iter(precisions.values()), None)
