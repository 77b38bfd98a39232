"""Callbacks of transformers' trainer that make a run resumable, and end it soon after a signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_ft.core.interrupts import Interrupts
from lora_ft.data.batching import LengthSampler
from lora_ft.training.run_folder import RunFolder


class ValidationStopped(Exception):
    """A signal was received during a validation, which is repeated when the run is resumed."""


class ValidationStop(TrainerCallback):
    """Callback that ends a validation once `stop` returns True."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._stop():
            raise ValidationStopped


class ResumeKeeper(TrainerCallback):
    """Callback that makes a run resumable: sets the row order of each epoch, seals checkpoints, saves on a signal.

    After a signal, the current step is completed and its checkpoint written. A validation that is due or running is
    left out, since it may take longer than a scheduler waits, and the checkpoint is marked as unvalidated.

    Args:
        sampler: Sampler of the training rows.
        folder: Folder of the run.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, sampler: LengthSampler, folder: RunFolder, keep: int) -> None:
        self._sampler, self._folder, self._keep = sampler, folder, keep
        self._interrupts = Interrupts()
        self._saved = 0  # step of the last checkpoint
        self._unvalidated = False

    @property
    def interrupted(self) -> int:
        """Number of the signal received in any process, or 0."""
        return self._interrupts.caught

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self._interrupts.take()
        self._saved = state.global_step
        reset_learning_rate(options["lr_scheduler"], options["optimizer"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.release()

    def release(self) -> None:
        """Restore the previous signal handlers."""
        self._interrupts.release()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._must_stop(args):
            control.should_training_stop = True
            self._leave_out_validation(control)
            control.should_save |= not _ends_epoch(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._must_stop(args):
            self._unvalidated = True
            raise ValidationStopped

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The Trainer takes a stop for the end of an epoch, and so does a run that was resumed at its end.
        control.should_evaluate &= _ends_epoch(state) and self._saved < state.global_step
        control.should_save &= _ends_epoch(state) and self._saved < state.global_step
        if self.interrupted:
            self._leave_out_validation(control)
            control.should_save = _ends_epoch(state) and self._saved < state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = state.global_step
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.should_save:
            best = state.best_model_checkpoint
            self._folder.seal_checkpoint(state.global_step, keep=self._keep, best=best, validated=not self._unvalidated)

    def _must_stop(self, args: TrainingArguments) -> bool:
        self._interrupts.caught = _in_any_process(self.interrupted, args)
        return bool(self.interrupted)

    def _leave_out_validation(self, control: TrainerControl) -> None:
        self._unvalidated |= control.should_evaluate
        control.should_evaluate = False


def _ends_epoch(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


def reset_learning_rate(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Set the learning rate of the next step by the schedule over all steps.

    A loaded optimizer has the rate of the schedule it was saved under, which may have had fewer steps.
    """
    if not hasattr(scheduler, "lr_lambdas"):  # reduce_lr_on_plateau has no schedule
        return
    rates = [
        rate * share(scheduler.last_epoch) for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # the trainer logs it


def _in_any_process(number: int, args: TrainingArguments) -> int:
    """Return the largest number in any process, since all processes must stop at the same step."""
    if args.world_size == 1:
        return number
    shared = torch.tensor(number, device=args.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared.item())
