"""Train one adapter group from its tasks to their runs, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_ft.core.errors import LoraFtError
from lora_ft.core.interrupts import Interrupted
from lora_ft.core.memory import keep_freed_memory
from lora_ft.models.bases import Base, quiet_transformers
from lora_ft.multi_lora.dashboard import Dashboard
from lora_ft.multi_lora.group import AdapterGroup
from lora_ft.multi_lora.group_member import MemberTrainer, publish
from lora_ft.multi_lora.peft_adapter import make_adapter
from lora_ft.multi_lora.planner import MemoryNeed, kept_states, packs_rows
from lora_ft.multi_lora.resume_point import Pause
from lora_ft.multi_lora.snapshots import Snapshot, Snapshots
from lora_ft.multi_lora.stacked_weights import StackedWeights
from lora_ft.runs.group_record import GROUPS_FOLDER
from lora_ft.tasks.schema import Task
from lora_ft.training.encoder_states import EncoderStates, distinct_prompts
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.resume_keeper import ValidationStop
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.weights import open_base


@dataclass(frozen=True)
class GroupJob:
    """Description of one group to train.

    Attributes:
        number: Number of the group, from 1.
        data: Prepared data of its tasks.
        plans: Plans of its tasks, by name.
        out: Folder of the runs.
        run: Identifier of the training, which snapshots carry.
        resumed: Names of tasks that continue from the resume points in their working folders.
        pauses: Pauses of tasks that leave with a resume point, by name. Other tasks train to their ends.
    """

    number: int
    data: list[PreparedData]
    plans: dict[str, Plan]
    out: Path
    run: str = ""
    resumed: frozenset[str] = frozenset()
    pauses: Mapping[str, Pause] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of its tasks."""
        return [data.task.name for data in self.data]

    @property
    def first(self) -> tuple[Task, Plan]:
        """First task and its plan. All tasks share the base, its device and the precision."""
        task = self.data[0].task
        return task, self.plans[task.name]

    @property
    def packed(self) -> bool:
        """True if the group trains on packed rows, which all tasks must allow."""
        return all(packs_rows(data.task, self.plans[data.task.name]) for data in self.data)

    @property
    def folder(self) -> Path:
        """Folder of its snapshots."""
        return self.out / GROUPS_FOLDER / str(self.number)


def set_threads(device: str, count: int) -> None:
    """Set the number of CPU threads of this process if the device is a CPU."""
    if device == "cpu":
        torch.set_num_threads(count)
        keep_freed_memory()


def open_frozen_base(task: Task, base: Base, device: str) -> Any:
    """Load the frozen base of an adapter group."""
    model = open_base(task, base, device).to(device)
    if task.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def train_group(
    job: GroupJob,
    open_model: Callable[[], Any],
    snapshots: Snapshots,
    dashboard: Dashboard,
    stop: Callable[[], bool],
) -> dict[str, str]:
    """Train an adapter group to its end, from its last snapshot if there is one, and return failures by task name.

    Args:
        job: Group to train.
        open_model: Returns the base. Called only if steps remain. The model is unchanged afterwards.
        snapshots: Snapshots of this group.
        dashboard: Receives the status of all adapters.
        stop: Called after each step and each batch of a validation. If it returns True, training ends with a snapshot.

    Raises:
        Interrupted: `stop` returned True.
    """
    snapshot = snapshots.latest()
    by_name = {data.task.name: data for data in job.data}
    for name in snapshot.closed if snapshot else []:  # a process killed earlier may not have published them
        folder = RunFolder.in_group(job.out / name)
        if folder.working.is_dir():
            publish(by_name[name].task, folder)
    if snapshot and not snapshot.members:
        return snapshot.failed
    model = open_model()
    with quiet_transformers():
        group, stack = _build_group(job, by_name, model, snapshot, snapshots, dashboard)
        for member in group.members:
            member.trainer.add_callback(ValidationStop(stop))
        step = snapshot.tick if snapshot else 0
        if snapshot:
            dashboard.note(f"resuming from step {step}")
        dashboard.stage("training", step + group.steps, step)
        group.resume()
        while group.members and not stop():
            group.step()
            step += 1
            dashboard.advance(step)
        if group.members:
            group.save()
            raise Interrupted(
                f"stopped with {len(group.members)} adapters unfinished; their snapshot is in {job.folder}",
                "repeat the command with --resume to continue",
            )
    stack.remove(model)
    return group.failed


def _build_group(
    job: GroupJob,
    by_name: dict[str, PreparedData],
    model: Any,
    snapshot: Snapshot | None,
    snapshots: Snapshots,
    dashboard: Dashboard,
) -> tuple[AdapterGroup, StackedWeights]:
    """Return the group with all its members, new or restored from a snapshot, and its weights."""
    plan = job.first[1]
    names: Sequence[str] = list(snapshot.members) if snapshot else job.names
    adapters = [make_adapter(model, by_name[name], plan.device) for name in names]
    stack = StackedWeights(model, [adapter for adapter, _ in adapters])
    for number, (_, weights) in enumerate(adapters):
        stack.load(number, weights)
        weights.clear()
    if job.packed:
        stack.pack(model)
    members = [
        MemberTrainer(by_name[name], job.plans[name], adapter, model, job.out / name, job.pauses.get(name))
        for name, (adapter, _) in zip(names, adapters, strict=True)
    ]
    states = _encoder_states(job, model)
    for member in members:
        member.states, member.trainer.packing = states.get(member.name), stack.packing
    if snapshot is None and job.resumed:
        snapshot = _last_states(members, stack, job.resumed)
    for member in members:
        member.begin(snapshot.members[member.name] if snapshot else None)
    bf16 = plan.precision.is_bf16
    return AdapterGroup(model, stack, members, snapshots, bf16=bf16, dashboard=dashboard, snapshot=snapshot), stack


def _encoder_states(job: GroupJob, model: Any) -> dict[str, EncoderStates]:
    """Return the encoder states of each task by name, or nothing if every step runs the encoder.

    Tasks with the same prompts share their states. All tasks of the job decide, even those that have left the group, so
    that a resumed group computes the same bits.
    """
    needs = [MemoryNeed.of(data, job.plans[name]) for name, data in zip(job.names, job.data, strict=True)]
    if not kept_states(needs):
        return {}
    prompts = [tuple(distinct_prompts(data.rows)) for data in job.data]
    shared = {own: EncoderStates(model, own, packed=job.packed) for own in dict.fromkeys(prompts)}
    return {name: shared[own] for name, own in zip(job.names, prompts, strict=True)}


def _last_states(members: Sequence[MemberTrainer], stack: StackedWeights, resumed: frozenset[str]) -> Snapshot:
    """Return the last states of runs as the snapshot of an adapter group before its first step.

    Args:
        members: Members in the order of the stack.
        stack: Initial weights, which members that are not resumed keep.
        resumed: Names of the members to resume.

    Raises:
        LoraFtError: The last state of a run is missing or damaged.
    """
    rows = {"weights": stack.weights.clone()}
    rows |= {name: torch.zeros_like(stack.weights) for name in ("means", "squares")}
    entries: dict[str, dict[str, Any] | None] = {}
    for number, member in enumerate(members):
        if member.name not in resumed:
            entries[member.name] = None
            continue
        point = member.point()
        if point is None:
            raise LoraFtError(f"{member.working} contains no state to resume from", "start over with --overwrite")
        entries[member.name], tensors = point
        for name, matrix in rows.items():
            stack.load(number, getattr(tensors, name), matrix)
    return Snapshot(0, rows, entries, [], {})
