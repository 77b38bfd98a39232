"""The verb `train`: train one task's adapter, or with `method: full` all weights of its base."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback

from lora_ft.core.disk import keeping
from lora_ft.core.distributed import processes, rank
from lora_ft.core.energy import SOURCES, meter
from lora_ft.core.files import read_json
from lora_ft.core.interrupts import Interrupted, name_of
from lora_ft.core.progress import Progress, Silent
from lora_ft.models.bases import find_base, quiet_transformers
from lora_ft.models.initialization import INITIAL, keep_start
from lora_ft.models.start_from import start_record, with_start_adapter
from lora_ft.reports.run_report import write_run_report
from lora_ft.runs.run import Run
from lora_ft.tasks.files import as_task
from lora_ft.tasks.schema import Task
from lora_ft.training import resume_points
from lora_ft.training.own_rows import with_own_rows
from lora_ft.training.plan import Plan, make_plan
from lora_ft.training.prepared_data import PreparedData, prepare
from lora_ft.training.results import hardware_name, run_metrics
from lora_ft.training.resume_keeper import ValidationStopped
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.setup import build_trainer
from lora_ft.training.trainer import Trainer
from lora_ft.training.weights import save_weights


def train(
    task: Task | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train a task's adapter, or with `method: full` all weights of its base.

    During training, the run is in `<out>.unfinished`, which is renamed to `out` when it is complete.
    `lora_ft.training.run_folder` describes the files that are kept, and what `resume` does and refuses.

    Args:
        task: Task to train, task file or recipe.
        out: Folder of the run. A link is followed.
        resume: Continue an unfinished run from its last checkpoint, with the same result as without the stop. A
            finished run is trained longer; its task may differ in `train.num_train_epochs` or `train.max_steps` only.
        overwrite: Replace an existing run once the new one is finished, and discard an unfinished one.
        progress: Receives stages, steps and notes. None is silent.

    Raises:
        UsageError: The task, its data or its base cannot be used, `out` is taken, or the rows have changed.
        LossError: The loss is not finite, or exactly 0.
        LoraFtError: The data is damaged, or the disk is full.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP was received; a checkpoint was saved.
    """
    progress = progress if progress is not None and rank() == 0 else Silent()
    out = Path(out)
    task = with_start_adapter(with_own_rows(as_task(task), out))
    with RunFolder.claim(task, out, resume=resume, overwrite=overwrite, progress=progress) as folder:
        remedy = "free some space, then add --resume to continue from the last checkpoint"
        with keeping(folder.working, remedy):
            _train(task, folder, progress, resume=resume)
        if rank() == 0:
            write_run_report(Run(out), progress)
    return Run(out)


def _train(task: Task, folder: RunFolder, progress: Progress, *, resume: bool) -> None:
    """Train the run of a claimed folder and publish it."""
    working = folder.working
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    data = prepare(task, base, progress)
    folder.check_rows(data.record)
    plan = make_plan(data.task, base.config, data.rows, processes(), folder.choices() if resume else None)
    folder.require_steps_left(plan.steps)
    for line in plan.lines():
        progress.note(line)
    if rank() == 0:
        folder.reopen()
    trainer, keeper, reporter = build_trainer(data, plan, folder, progress)
    checkpoint = _begin(data, plan, folder, trainer, resume=resume)
    resumed_at = 0 if checkpoint is None else resume_points.step_of(checkpoint)
    folder.trim_log(resumed_at)
    if checkpoint is not None:
        progress.note(f"resuming from step {resumed_at}")
        restore_patience(trainer, checkpoint)
        if not resume_points.is_validated(checkpoint):
            trainer.validate_first()
        if folder.finished is not None:
            progress.note(folder.schedule_note(data.task, plan))
    started_at, joules = time.time(), meter(plan.device)
    joules_before = joules() if joules else 0.0
    with quiet_transformers():
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except ValidationStopped:
            pass  # of the checkpoint that training resumes from
        finally:
            keeper.release()
    if keeper.interrupted:
        raise Interrupted(
            f"stopped by {name_of(keeper.interrupted)} after step {trainer.state.global_step:,} of {plan.steps:,}; "
            f"its checkpoint is in {working}",
            "repeat the command with --resume to continue",
        ).by(keeper.interrupted)
    folder.require_own()
    if rank() == 0:
        save_weights(data, trainer.model, working)
        metrics = run_metrics(data, plan, trainer, reporter, time.time() - started_at) | {
            "resumed_at": resumed_at,
            "energy": {"joules": round(joules() - joules_before, 1), "source": SOURCES[plan.device]}
            if joules
            else None,
            "hardware": hardware_name(plan),
            **start_record(data.task),
        }
        folder.finish(data.task, metrics)
    if processes() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _begin(data: PreparedData, plan: Plan, folder: RunFolder, trainer: Trainer, *, resume: bool) -> Path | None:
    """Record task, rows and choices in the run's folder, and return the checkpoint to resume from, if any."""
    task, checkpoint = data.task, None
    if rank() == 0:
        folder.record(data, plan)
        if task.method == "lora" and task.lora.keeps_start:
            keep_start(trainer.model, folder.working / INITIAL)
        checkpoint = folder.latest_checkpoint()
        if checkpoint is not None:
            resume_points.repoint_best(checkpoint)
    if processes() > 1:
        torch.distributed.barrier()
    if rank() != 0:
        checkpoint = folder.latest_checkpoint()
    return checkpoint if resume else None


def restore_patience(trainer: Trainer, checkpoint: Path) -> None:
    """Restore the early-stopping counter of a checkpoint; transformers restores all callbacks or none."""
    saved = read_json(checkpoint / "trainer_state.json").get("stateful_callbacks") or {}
    attributes = (saved.get(EarlyStoppingCallback.__name__) or {}).get("attributes") or {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = int(attributes.get("early_stopping_patience_counter", 0))
