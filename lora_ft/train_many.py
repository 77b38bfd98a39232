"""The job `train_many`: train several tasks on one base and write a run for each."""

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
from lora_ft.core.staging import tidy
from lora_ft.data.row_record import RowRecord
from lora_ft.models.bases import Base, find_base
from lora_ft.multi_lora.dashboard import Dashboard, SilentDashboard
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
from lora_ft.runs.group_record import GROUPS_FOLDER, GROUPS_RECORD
from lora_ft.runs.run import TASK, Run, is_run, working_folder
from lora_ft.tasks.files import as_task
from lora_ft.tasks.schema import AUTO, Task
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.memory_estimates import Batch, Shape, StepOptions
from lora_ft.training.own_rows import with_own_rows
from lora_ft.training.plan import Choices, Plan, make_plan
from lora_ft.training.prepared_data import PreparedData, prepare
from lora_ft.training.run_folder import RunFolder, require_same_rows

_VERSION = 1


@dataclass(frozen=True)
class TrainManyResult:
    """Result of `train_many`.

    Attributes:
        runs: Runs of the trained tasks, in the order of the tasks.
        failed: Reason of failure by task name, for all other tasks.
    """

    runs: list[Run]
    failed: dict[str, str]

    def __str__(self) -> str:
        lines = [str(run.folder) for run in self.runs]
        return "\n".join([*lines, *(f"{name} failed: {reason}" for name, reason in self.failed.items())])

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def train_many(
    tasks: Sequence[Task | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    most: int | None = None,
    engine: Engine | None = None,
    dashboard: Dashboard | None = None,
) -> TrainManyResult:
    """Train an adapter for each task on one shared copy of their base. Results equal those of `lora_ft.train.train`.

    Tasks that do not fit into memory together are trained in several groups. An adapter with a non-finite loss leaves
    its group; the others go on.

    Args:
        tasks: Tasks, paths of task files, or names of recipes.
        out: Folder of the runs, which are named after their tasks. Unfinished runs lie in `<name>.unfinished` there.
        resume: Continue from the last snapshot, with the same result as without the stop. If all runs are finished,
            train them longer, as `lora_ft.train.train` does.
        overwrite: Replace existing runs and discard unfinished ones.
        most: Maximum number of adapters in a group. Default: as many as fit, balanced if several groups train at a
            time.
        engine: Engine that trains the groups. Default: this process, one group after another.
        dashboard: Receives stages, notes and the status of all adapters.

    Raises:
        UsageError: A task cannot be trained with the others, or `train` would raise it.
        LoraFtError: For the same reasons as in `train`.
        Interrupted: Ctrl-C was pressed.
    """
    dashboard = dashboard or SilentDashboard()
    if processes() > 1:
        raise UsageError("several tasks train in one process", "start it without torchrun, or one task at a time")
    out = refuse_shelf(Path(out))
    loaded = [as_task(task) for task in tasks]
    loaded = [with_own_rows(task, out / task.name) for task in loaded]
    require_groupable(loaded)
    with ExitStack() as locks, keeping(out, "free some, then add --resume to go on from the last snapshot"):
        for place in (out / GROUPS_FOLDER, *(out / task.name for task in loaded)):
            locks.enter_context(locked(place))
            tidy(place)
        return _train(loaded, out, resume, overwrite, most, engine, dashboard)


def _train(
    tasks: Sequence[Task],
    out: Path,
    resume: bool,
    overwrite: bool,
    most: int | None,
    engine: Engine | None,
    dashboard: Dashboard,
) -> TrainManyResult:
    """Train the tasks. The caller holds the locks of their folders."""
    record, finished = _claim(tasks, out, resume=resume, overwrite=overwrite)
    base = find_base(tasks[0].base)
    if base.notice:
        dashboard.note(base.notice)
    with closing(engine or LocalEngine()) as chosen:
        site = chosen.inspect(out, tasks[0].train.precision, record.get("storage") if record else None, dashboard)
        if began := record["precision"] if record else _precision(finished):
            site = replace(site, precision=ComputeDtype(began, "as this began"))
        longer = bool(record.get("longer")) if record else bool(finished)
        if longer and site.storage:
            raise UsageError(
                f"finished runs are not trained longer through --storage (got {site.storage})",
                "leave it out, with an --out that all nodes share or without --engine ray",
            )
        dashboard.stage("reading tasks", len(tasks))
        materials = _gather(tasks, base, dashboard)
        if record:
            _check_rows(record, materials, out)
        for name, claim in finished.items():
            claim.check_rows(materials[name].record)
        plans = {name: _plan(material, base, site) for name, material in materials.items()}
        dashboard.note(f"precision {site.precision.name}: {site.precision.reason}")
        for name, claim in finished.items():
            claim.require_steps_left(plans[name].steps)
            dashboard.note(f"{name}: {claim.schedule_note(materials[name].task, plans[name])}")
        if record is None:
            groups = _choose(materials, plans, base, site, most, dashboard)
            record = {
                "version": _VERSION,
                "run": secrets.token_hex(8),
                "precision": site.precision.name,
                "storage": site.storage,
                "packs": groups,
                "rows": _record_rows(materials, out),
                "longer": longer,
            }
            for claim in finished.values():  # before the record, so that a process killed here repeats it
                claim.reopen()
            write_json(out / GROUPS_FOLDER / GROUPS_RECORD, record)
        jobs = [
            GroupJob(
                at,
                [materials[name] for name in names],
                {name: plans[name] for name in names},
                out,
                record.get("run", ""),
                longer,
            )
            for at, names in enumerate(record["packs"], 1)
        ]
        ended = chosen.run(jobs, site, dashboard)
    if not ended.broken:
        (out / GROUPS_FOLDER / GROUPS_RECORD).unlink()
        shutil.rmtree(out / GROUPS_FOLDER)
    for name in (task.name for task in tasks if is_run(out / task.name)):
        write_run_report(Run(out / name), dashboard)
    if len(tasks) > 1:
        write_runs_report(out, dashboard)
    failed = ended.failed | {name: f"{why}; --resume goes on" for name, why in ended.broken.items()}
    return TrainManyResult([Run(out / task.name) for task in tasks if task.name not in failed], failed)


def _plan(material: PreparedData, base: Base, site: TrainingSite) -> Plan:
    """Return the plan of a task as if it trained alone, but without compiling."""
    plan = make_plan(material.task, base.config, material.rows, 1, Choices(site.precision, False))
    return replace(plan, device=site.device, compile_reason="groups are not compiled")


def _choose(
    materials: Mapping[str, PreparedData],
    plans: Mapping[str, Plan],
    base: Base,
    site: TrainingSite,
    most: int | None,
    dashboard: Dashboard,
) -> list[list[str]]:
    """Return the names of the tasks of each group, and describe the groups on the dashboard."""
    needs = []
    for name, material in materials.items():
        lora, train = material.task.lora, material.task.train
        longest = [max(len(getattr(row, side)) for row in material.rows) for side in ("input_ids", "labels")]
        batch = Batch(train.per_device_train_batch_size, *longest)
        needs.append(MemoryNeed(name, plans[name].trainable, max(lora.r, *lora.rank_pattern.values(), 1), batch))

    options = StepOptions(
        bf16=site.precision.is_bf16,
        checkpointing=train.gradient_checkpointing,  # the same in all tasks
        cpu=site.device == "cpu",
    )
    shape = Shape.of(base.config)
    groups = plan_groups(shape, needs, site.room, options, most)
    if most is None and site.places > 1:
        size = balanced_size(len(needs), site.places, max(len(group.names) for group in groups))
        groups = plan_groups(shape, needs, site.room, options, size)
    for line in describe_groups(groups, site.room):
        dashboard.note(line)
    return [group.names for group in groups]


def _gather(tasks: Sequence[Task], base: Base, dashboard: Dashboard) -> dict[str, PreparedData]:
    """Return the prepared data of each task, by name. Tasks with the same data settings share one copy."""
    known: dict[str, PreparedData] = {}
    found = {}
    for at, task in enumerate(tasks):
        in_memory = "".join(rows.digest for rows in task.data.in_memory.values())
        key = in_memory + task.model_dump_json(include={"data", "prompt", "codec", "labels", "lengths"})
        if key not in known:
            known[key] = prepare(task, base, dashboard)
        shared = known[key]
        labelled = task if task.labels != AUTO else task.model_copy(update={"labels": shared.task.labels})
        found[task.name] = replace(shared, task=labelled)
        dashboard.advance(at + 1)
    return found


def _record_rows(materials: Mapping[str, PreparedData], out: Path) -> dict[str, str]:
    """Write the row records, one file for each distinct record. Return the digest of each task's record, by name."""
    digests = {name: material.record.digest for name, material in materials.items()}
    for name, digest in digests.items():
        if not (path := _rows_file(out, digest)).is_file():
            write_json(path, materials[name].record.as_dict())
    return digests


def _check_rows(record: Mapping[str, Any], materials: Mapping[str, PreparedData], out: Path) -> None:
    """Raise UsageError if the rows of a task have changed since the groups began. Version 0.1.0 recorded no rows."""
    for name, digest in record.get("rows", {}).items():
        now = materials[name].record
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
        Record of the groups to resume, or None; and the claims of finished runs to train longer, by name.
    """
    record = out / GROUPS_FOLDER / GROUPS_RECORD
    if resume:
        if not record.is_file():
            shutil.rmtree(out / GROUPS_FOLDER, ignore_errors=True)
            return None, _finished(tasks, out)
        found = read_json(record)
        if found["version"] != _VERSION:
            raise LoraFtError(
                f"{record} is of version {found['version']}, not {_VERSION}", "start over with --overwrite"
            )
        before = {name for group in found["packs"] for name in group}
        if before != {task.name for task in tasks}:
            raise UsageError(f"the unfinished groups in {out} are of other tasks", "resume with the same ones")
        for task in tasks:
            place = out / task.name
            if (working_folder(place) / TASK).is_file() or found.get("longer"):
                RunFolder.resume(task, place, overwrite=overwrite or is_run(place))
        return found, {}
    if record.is_file() and not overwrite:
        raise UsageError(
            f"unfinished groups lie in {out / GROUPS_FOLDER}", "add --resume to go on, or --overwrite to start over"
        )
    for task in tasks:
        RunFolder.new(task, out / task.name, overwrite=overwrite)
    shutil.rmtree(out / GROUPS_FOLDER, ignore_errors=True)
    return None, {}


def _finished(tasks: Sequence[Task], out: Path) -> dict[str, RunFolder]:
    """Return the claims of finished runs to train longer, by name.

    Raises:
        UsageError: There is nothing to resume, a task has no finished run, or its run is of another task.
    """
    if not any(is_run(out / task.name) for task in tasks):
        raise UsageError(f"there are no unfinished groups in {out} to resume", "leave out --resume")
    claims = {}
    for task in tasks:
        place = out / task.name
        if not is_run(place):
            raise UsageError(
                f"the task '{task.name}' has no finished run {place} to train longer",
                "leave it out, or train it first",
            )
        claims[task.name] = claim = RunFolder.resume(task, place)
        if claim.finished is None:
            raise UsageError(
                f"an unfinished run lies in {claim.working}", "finish it alone with --resume, or move it away"
            )
    return claims


def _precision(finished: Mapping[str, RunFolder]) -> str | None:
    """Return the precision in which finished runs were trained, or None if there are no runs.

    Raises:
        UsageError: The runs were trained in different precisions.
    """
    found = {name: str(Run(claim.out).metrics["precision"]) for name, claim in finished.items()}
    for name, precision in found.items():
        first = next(iter(found))
        if precision != found[first]:
            raise UsageError(
                f"the runs were trained in different precisions: '{first}' in {found[first]}, '{name}' in {precision}",
                "train those of each precision longer by themselves",
            )
    return next(iter(found.values()), None)
