"""The job `train`: a task in, a run out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from export.files import read_json, write_json
from export.runtime.cpu import allowed_cpus
from export.runtime.text import Tokenizer
from lora_ft import checkpoints
from lora_ft.bases import Base, cache_folder, find_base, quiet_transformers
from lora_ft.batches import Encoded
from lora_ft.claim import claim
from lora_ft.data import Example
from lora_ft.energy import SOURCES, meter
from lora_ft.initial import INITIAL, keep_start
from lora_ft.interrupts import Interrupted
from lora_ft.material import gather
from lora_ft.memory import keep_freed_memory
from lora_ft.outcome import CHOICES, finish, hardware, measured, trim_log
from lora_ft.plan import Choices, Plan, make_plan
from lora_ft.precision import Precision
from lora_ft.processes import processes, rank
from lora_ft.progress import Progress, Silent
from lora_ft.runs import LOG, TASK, Run, unfinished
from lora_ft.setup import equip
from lora_ft.task import Task
from lora_ft.taskfile import save_task
from lora_ft.trainer import Keeper, Reporter, Trainer
from lora_ft.weights import open_weights, save_weights


def train(
    task: Task, out: Path, *, resume: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Run:
    """Train a task's adapter, or with method full all of its base.

    While it trains, the run lies in `<out>.unfinished`; it becomes `out` when all of it is written.

    Args:
        task: what to train.
        out: folder of the run.
        resume: go on from the last checkpoint of an unfinished run, exactly as if it had not stopped.
        overwrite: replace a run that is there, once the new one is finished, and discard an unfinished one.
        progress: told what happens.

    Raises:
        UsageError: the task, its data or its base cannot be used, or `out` is taken.
        LoraFtError: the data is damaged, or training broke down.
        Interrupted: Ctrl-C.
    """
    progress = progress if progress is not None and rank() == 0 else Silent()
    working = unfinished(out)
    claim(task, out, working, resume=resume, overwrite=overwrite)
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    material = gather(task, base, progress)
    task, tokenizer, splits, rows = material.task, material.tokenizer, material.splits, material.rows
    plan = make_plan(task, base.config, rows, processes(), _choices(working) if resume else None)
    for line in plan.lines():
        progress.note(line)
    trainer, keeper, reporter = build_trainer(task, plan, base, tokenizer, rows, material.validation, working, progress)
    checkpoint = _start(task, plan, working, trainer, resume=resume)
    resumed = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    trim_log(working / LOG, resumed)
    if checkpoint is not None:
        progress.note(f"going on from step {resumed}")
    began, joules = time.time(), meter(plan.device)
    before = joules() if joules else 0.0
    with quiet_transformers():
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            keeper.release()
    if keeper.interrupted:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step:,} of {plan.steps:,}; its checkpoint is in {working}",
            "the same command with --resume goes on from there",
        )
    if rank() == 0:
        save_weights(task, trainer.model, base, tokenizer, working)
        metrics = measured(task, plan, base, trainer, reporter, splits, time.time() - began) | {
            "resumed_at": resumed,
            "energy": {"joules": round(joules() - before, 1), "source": SOURCES[plan.device]} if joules else None,
            "hardware": hardware(plan),
        }
        finish(task, working, out, metrics)
    if processes() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return Run(out)


def _choices(working: Path) -> Choices | None:
    """What the unfinished run chose when it began; another machine, or the same one under load, might choose anew."""
    path = working / CHOICES
    if not path.is_file():
        return None
    found = read_json(path)
    return Choices(Precision(found["precision"], "as this run began"), found["compile"])


def _start(task: Task, plan: Plan, working: Path, trainer: Trainer, *, resume: bool) -> Path | None:
    """Write down what is being trained and how, and find the checkpoint to go on from."""
    if rank() == 0:
        working.mkdir(parents=True, exist_ok=True)
        save_task(task, working / TASK)
        write_json(working / CHOICES, {"precision": plan.precision.name, "compile": plan.compile})
        if task.method == "lora" and task.lora.starts_elsewhere:
            keep_start(trainer.model, working / INITIAL)
        found = checkpoints.latest(working)
    if processes() > 1:
        torch.distributed.barrier()
    if rank() != 0:
        found = checkpoints.latest(working)
    return found if resume else None


def build_trainer(
    task: Task, plan: Plan, base: Base, tokenizer: Tokenizer, rows: Sequence[Encoded], validation: Sequence[Example],
    working: Path, progress: Progress,
) -> tuple[Trainer, Keeper, Reporter]:  # fmt: skip
    """The trainer of a task, ready to start; and its callbacks that others ask later.

    Args:
        task, plan, base, tokenizer: what is trained, and how.
        rows, validation: encoded rows to train on, and examples to choose the best checkpoint by (may be none).
        working: folder of checkpoints and the log; it exists before the first step. Where it holds the start of an
            adapter, that is gone on from.
        progress: told what happens.
    """
    if plan.device == "cpu":
        torch.set_num_threads(max(1, allowed_cpus() // processes()))
        keep_freed_memory()
    model = open_weights(task, plan, base, tokenizer, rows, working / INITIAL)
    if plan.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        model.compile(dynamic=True)
    trainer, reporter = equip(task, plan, model, tokenizer, rows, validation, working, progress)
    keeper = Keeper(trainer.sampler, working, task.train.save_total_limit)
    trainer.add_callback(keeper)
    return trainer, keeper, reporter
