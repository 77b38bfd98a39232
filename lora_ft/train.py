"""The job `train`: a task in, a run out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback

from lora_ft.core.disk import keeping
from lora_ft.core.distributed import processes, rank
from lora_ft.core.energy import SOURCES, meter
from lora_ft.core.files import read_json, write_json
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.interrupts import Interrupted, name_of
from lora_ft.core.memory import keep_freed_memory
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded
from lora_ft.data.splits import Example
from lora_ft.models.bases import Base, cache_folder, find_base, quiet_transformers
from lora_ft.models.initialization import INITIAL, keep_start
from lora_ft.models.start_from import adopted, start_record
from lora_ft.reports.run_report import write_run_report
from lora_ft.runs.run import LOG, TASK, Run
from lora_ft.tasks.files import save_task
from lora_ft.tasks.schema import Task
from lora_ft.training import resume_points
from lora_ft.training.compute_dtype import ComputeDtype
from lora_ft.training.output_folder import Claim, claimed, run_of
from lora_ft.training.plan import Choices, Plan, make_plan
from lora_ft.training.prepared_data import PreparedData, prepare
from lora_ft.training.results import CHOICES, finish, hardware, measured, schedule_note, trim_log
from lora_ft.training.setup import task_trainer
from lora_ft.training.trainer import Keeper, ProgressReporter, Trainer
from lora_ft.training.weights import open_weights, save_weights


def train(
    task: Task, out: Path, *, resume: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Run:
    """Train a task's adapter, or with method full all of its base.

    While it trains, the run lies in `<out>.unfinished`; it becomes `out` when all of it is written. Another job is
    refused there meanwhile.

    Args:
        task: Task to train.
        out: Folder of the run. A link is followed.
        resume: Go on from the last checkpoint of an unfinished run, exactly as if it had not stopped; or train a
            finished run longer, whose task differs in `train.num_train_epochs` or `train.max_steps` only. The learning
            rate then follows its schedule over all steps, those that are done included.
        overwrite: Replace a run that is there, once the new one is finished, and discard an unfinished one.
        progress: Told what happens.

    Raises:
        UsageError: The task, its data or its base cannot be used, `out` is taken, or a run would go on with other rows.
        LoraFtError: The data is damaged, the disk is full, or training broke down.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was saved.
    """
    progress = progress if progress is not None and rank() == 0 else Silent()
    task = adopted(task)
    with claimed(task, out, resume=resume, overwrite=overwrite, progress=progress) as claim:
        remedy = "free some, then add --resume to go on from the last checkpoint"
        with keeping(claim.working, remedy):
            _train(task, claim, progress, resume=resume)
        if rank() == 0:
            write_run_report(Run(out), progress)
    return Run(out)


def _train(task: Task, claim: Claim, progress: Progress, *, resume: bool) -> None:
    """Train a claimed run and put it into its place."""
    working = claim.working
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    material = prepare(task, base, progress)
    task, tokenizer, splits, rows = material.task, material.tokenizer, material.splits, material.rows
    claim.check_rows(material.record)
    started = _choices(claim) if resume else None
    plan = make_plan(task, base.config, rows, processes(), started)
    claim.require_steps_left(plan.steps)
    for line in plan.lines():
        progress.note(line)
    if rank() == 0:
        claim.reopen()
    trainer, keeper, reporter = build_trainer(
        task, plan, base, tokenizer, rows, material.validation, working, progress, claim
    )
    checkpoint = _start(material, plan, claim, trainer, resume=resume)
    resumed = 0 if checkpoint is None else resume_points.step_of(checkpoint)
    trim_log(working / LOG, resumed)
    if checkpoint is not None:
        progress.note(f"going on from step {resumed}")
        restore_patience(trainer, checkpoint)
        if claim.finished is not None:
            progress.note(schedule_note(claim.finished, task, plan))
    began, joules = time.time(), meter(plan.device)
    before = joules() if joules else 0.0
    with quiet_transformers():
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            keeper.release()
    if keeper.interrupted:
        raise Interrupted(
            f"stopped by {name_of(keeper.interrupted)} after step {trainer.state.global_step:,} of {plan.steps:,}; "
            f"its checkpoint is in {working}",
            "the same command with --resume goes on from there",
        ).by(keeper.interrupted)
    claim.require_own()
    if rank() == 0:
        save_weights(task, trainer.model, base, tokenizer, working)
        metrics = measured(task, plan, base, trainer, reporter, splits, time.time() - began) | {
            "resumed_at": resumed,
            "energy": {"joules": round(joules() - before, 1), "source": SOURCES[plan.device]} if joules else None,
            "hardware": hardware(plan),
            **start_record(task),
        }
        finish(task, working, claim.place, metrics)
    if processes() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def restore_patience(trainer: Trainer, checkpoint: Path) -> None:
    """Let early stopping count on where the checkpoint was saved, which transformers does only with all callbacks."""
    saved = read_json(checkpoint / "trainer_state.json").get("stateful_callbacks") or {}
    counted = (saved.get(EarlyStoppingCallback.__name__) or {}).get("attributes") or {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = int(counted.get("early_stopping_patience_counter", 0))


def _choices(claim: Claim) -> Choices | None:
    """What the run chose when it began; another machine, or the same one under load, might choose otherwise."""
    if claim.finished is not None:
        metrics = Run(claim.finished).metrics
        return Choices(ComputeDtype(metrics["precision"], "as this run began"), metrics["compiled"])
    path = claim.working / CHOICES
    if not path.is_file():
        return None
    found = read_json(path)
    return Choices(ComputeDtype(found["precision"], "as this run began"), found["compile"])


def _start(material: PreparedData, plan: Plan, claim: Claim, trainer: Trainer, *, resume: bool) -> Path | None:
    """Write down what is being trained and how, and find the checkpoint to go on from."""
    task, working = material.task, claim.working
    if rank() == 0:
        claim.record(material.record)
        write_json(working / CHOICES, {"precision": plan.precision.name, "compile": plan.compile})
        save_task(task, working / TASK)  # last: with it the run can be resumed
        if task.method == "lora" and task.lora.keeps_start:
            keep_start(trainer.model, working / INITIAL)
        found = resume_points.latest(working, run_of(working))
        if found is not None:
            resume_points.settle_best(found)
    if processes() > 1:
        torch.distributed.barrier()
    if rank() != 0:
        found = resume_points.latest(working, run_of(working))
    return found if resume else None


def build_trainer(
    task: Task,
    plan: Plan,
    base: Base,
    tokenizer: Tokenizer,
    rows: Sequence[Encoded],
    validation: Sequence[Example],
    working: Path,
    progress: Progress,
    claim: Claim | None = None,
) -> tuple[Trainer, Keeper, ProgressReporter]:
    """The trainer of a task, ready to start; and its callbacks that others ask later.

    Args:
        task, plan, base, tokenizer: what is trained, and how.
        rows, validation: encoded rows to train on, and examples to choose the best checkpoint by (may be none).
        working: folder of checkpoints and the log; it exists before the first step. Where it holds the start of an
            adapter, that is gone on from.
        progress: told what happens.
        claim: Claim of the run, whose identifier its checkpoints carry; None where nothing is resumed.
    """
    if plan.device == "cpu":
        torch.set_num_threads(max(1, allowed_cpus() // processes()))
        keep_freed_memory()
    model = open_weights(task, plan, base, tokenizer, rows, working / INITIAL)
    if plan.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        model.compile(dynamic=True)
    trainer, reporter = task_trainer(task, plan, model, tokenizer, rows, validation, working, progress)
    keeper = Keeper(trainer.sampler, working, task.train.save_total_limit, claim)
    trainer.add_callback(keeper)
    return trainer, keeper, reporter
