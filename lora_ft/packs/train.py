"""The job `train_pack`: several tasks on one base in, a run for each out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from export.errors import LoraFtError, UsageError
from export.files import read_json, write_json
from export.runtime.cpu import allowed_cpus
from lora_ft.bases import Base, find_base, quiet_transformers
from lora_ft.claim import claim
from lora_ft.interrupts import Interrupted, Interrupts
from lora_ft.material import Material, gather
from lora_ft.memory import device_memory, keep_freed_memory
from lora_ft.outcome import finish
from lora_ft.packs import snapshot
from lora_ft.packs.adapter import make_adapter
from lora_ft.packs.board import Board, SilentBoard
from lora_ft.packs.fit import Need, fit, lines, require_packable
from lora_ft.packs.member import Member
from lora_ft.packs.pack import Pack
from lora_ft.packs.stack import Stack
from lora_ft.plan import Choices, Plan, make_plan, this_device
from lora_ft.precision import Precision, choose_precision
from lora_ft.processes import processes
from lora_ft.runs import METRICS, TASK, Run, is_run, unfinished
from lora_ft.sizes import Batch, Shape
from lora_ft.task import AUTO, Task
from lora_ft.weights import open_base

WORK, _RECORD = "_packs.unfinished", "packs.json"  # no task's name begins with _
_VERSION = 1


@dataclass(frozen=True)
class Packed:
    """What `train_pack` left.

    Attributes:
        runs: of the tasks that were trained, in their order.
        failed: names of the others, and why.
    """

    runs: list[Run]
    failed: dict[str, str]


def train_pack(
    tasks: Sequence[Task], out: Path, *, resume: bool = False, overwrite: bool = False, most: int | None = None,
    board: Board | None = None,
) -> Packed:  # fmt: skip
    """Train an adapter for each task, all on one copy of their base, each as `lora_ft.train.train` would.

    Tasks that do not fit into memory together are trained in several packs, one after another. An adapter whose loss
    is not finite leaves its pack; the others go on.

    Args:
        tasks: what to train.
        out: folder of the runs, each by its task's name. While they train they lie in `<name>.unfinished` there.
        resume: go on from the last snapshot, exactly as if it had not stopped.
        overwrite: replace runs that are there, and discard unfinished ones.
        most: adapters in a pack; by default as many as fit.
        board: told how all adapters are.

    Raises:
        UsageError: a task cannot be trained with the others, or as of `train`.
        LoraFtError: as of `train`.
        Interrupted: Ctrl-C.
    """
    board = board or SilentBoard()
    if processes() > 1:
        raise UsageError("several tasks train in one process", "start it without torchrun, or one task at a time")
    require_packable(tasks)
    record = _claim(tasks, out, resume=resume, overwrite=overwrite)
    base = find_base(tasks[0].base)
    if base.notice:
        board.note(base.notice)
    device = this_device()
    asked = tasks[0].train.precision
    precision = Precision(record["precision"], "as this began") if record else choose_precision(asked, device)
    if device == "cpu":
        torch.set_num_threads(allowed_cpus())
        keep_freed_memory()
    board.stage("reading tasks", len(tasks))
    materials = _gather(tasks, base, board)
    plans = {name: _plan(material, base, precision) for name, material in materials.items()}
    board.note(f"precision {precision.name}: {precision.reason}")
    if record is None:
        packs = _choose(materials, plans, base, most, board)
        record = {"version": _VERSION, "precision": precision.name, "packs": packs}
        (out / WORK).mkdir(parents=True, exist_ok=True)
        write_json(out / WORK / _RECORD, record)
    model = open_base(tasks[0], base, device).to(device)
    if tasks[0].train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    failed: dict[str, str] = {}
    interrupts = Interrupts()
    interrupts.take()
    try:
        for at, names in enumerate(record["packs"], 1):
            some = [materials[name] for name in names]
            work = _Work(model, base, out, some, plans, device, precision.is_bf16, out / WORK / str(at))
            failed |= _train_one(work, board, interrupts)
    finally:
        interrupts.release()
    (out / WORK / _RECORD).unlink()
    shutil.rmtree(out / WORK)
    return Packed([Run(out / task.name) for task in tasks if task.name not in failed], failed)


def _plan(material: Material, base: Base, precision: Precision) -> Plan:
    """A task's plan as alone, but for compiling."""
    plan = make_plan(material.task, base.config, material.rows, 1, Choices(precision, False))
    return replace(plan, compile_reason="packs are not compiled")


def _choose(
    materials: Mapping[str, Material], plans: Mapping[str, Plan], base: Base, most: int | None, board: Board
) -> list[list[str]]:
    """Names of the tasks of each pack, and a word about them."""
    needs = []
    for name, material in materials.items():
        lora, train = material.task.lora, material.task.train
        longest = [max(len(getattr(row, side)) for row in material.rows) for side in ("input_ids", "labels")]
        batch = Batch(train.per_device_train_batch_size, *longest)
        needs.append(Need(name, plans[name].trainable, max(lora.r, *lora.rank_pattern.values(), 1), batch))
    first = next(iter(plans.values()))
    room = device_memory(first.device)
    chosen = fit(
        Shape.of(base.config), needs, room, bf16=first.precision.is_bf16, cpu=first.device == "cpu", most=most,
        checkpointing=train.gradient_checkpointing,  # which all share
    )  # fmt: skip
    for line in lines(chosen, room):
        board.note(line)
    return [one.names for one in chosen]


@dataclass(frozen=True)
class _Work:
    """One pack to train: the base, where runs go, its tasks, and where its snapshots lie."""

    model: Any
    base: Base
    out: Path
    materials: list[Material]
    plans: dict[str, Plan]
    device: str
    bf16: bool
    folder: Path


def _train_one(work: _Work, board: Board, interrupts: Interrupts) -> dict[str, str]:
    """Train a pack to its end; why some of it failed, by name."""
    found = snapshot.latest(work.folder)
    for name in found.closed if found else []:  # a process was killed before it put them into place
        working = unfinished(work.out / name)
        task = next(one.task for one in work.materials if one.task.name == name)
        if working.is_dir():
            finish(task, working, work.out / name, read_json(working / METRICS))
    names = list(found.members) if found else [material.task.name for material in work.materials]
    if not names:
        return found.failed if found else {}
    by_name = {material.task.name: material for material in work.materials}
    with quiet_transformers():
        made = [
            make_adapter(work.model, by_name[name].task, work.base, by_name[name].rows, work.device) for name in names
        ]
        stack = Stack(work.model, [adapter for adapter, _ in made])
        for number, (_, weights) in enumerate(made):
            stack.load(number, weights)
            weights.clear()
        members = [
            Member(by_name[name], work.plans[name], work.base, adapter, work.model, work.out / name)
            for name, (adapter, _) in zip(names, made, strict=True)
        ]
        for member in members:
            member.begin(found.members[member.name] if found else None)
        pack = Pack(work.model, stack, members, work.folder, bf16=work.bf16, board=board, snapshot=found)
        done = found.tick if found else 0
        if found:
            board.note(f"going on from step {done}")
        board.stage("training", done + pack.steps, done)
        while pack.members:
            pack.step()
            done += 1
            board.advance(done)
            if interrupts.caught and pack.members:
                pack.save()
                raise Interrupted(
                    f"stopped with {len(pack.members)} adapters unfinished; their snapshot is in {work.folder}",
                    "the same command with --resume goes on from there",
                )
    stack.remove(work.model)
    return pack.failed


def _gather(tasks: Sequence[Task], base: Base, board: Board) -> dict[str, Material]:
    """The material of all tasks by name; tasks that differ in how they train only share what is read."""
    known: dict[str, Material] = {}
    found = {}
    for at, task in enumerate(tasks):
        key = task.model_dump_json(include={"data", "prompt", "codec", "labels", "lengths"})
        if key not in known:
            known[key] = gather(task, base, board)
        shared = known[key]
        labelled = task if task.labels != AUTO else task.model_copy(update={"labels": shared.task.labels})
        found[task.name] = replace(shared, task=labelled)
        board.advance(at + 1)
    return found


def _claim(tasks: Sequence[Task], out: Path, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Make sure that all runs may be written; the record of what is resumed."""
    record = out / WORK / _RECORD
    if resume:
        if not record.is_file():
            raise UsageError(f"there are no unfinished packs in {out} to resume", "leave out --resume")
        found = read_json(record)
        if found["version"] != _VERSION:
            raise LoraFtError(
                f"{record} is of version {found['version']}, not {_VERSION}", "start anew with --overwrite"
            )
        before = {name for pack in found["packs"] for name in pack}
        if before != {task.name for task in tasks}:
            raise UsageError(f"the unfinished packs in {out} are of other tasks", "resume with the same ones")
        for task in tasks:
            place = out / task.name
            if (unfinished(place) / TASK).is_file():
                claim(task, place, unfinished(place), resume=True, overwrite=overwrite or is_run(place))
        return found
    if record.is_file() and not overwrite:
        raise UsageError(f"unfinished packs lie in {out / WORK}", "add --resume to go on, or --overwrite to start anew")
    for task in tasks:
        claim(task, out / task.name, unfinished(out / task.name), resume=False, overwrite=overwrite)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return None
