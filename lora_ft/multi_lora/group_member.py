"""Train one adapter of a group exactly as alone: row order, schedule, log, evaluations and best weights."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer_utils import speed_metrics

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json, sync_tree, write_json
from lora_ft.core.progress import Silent
from lora_ft.data.batching import collate
from lora_ft.multi_lora.batched_linear import PerAdapterDropout
from lora_ft.multi_lora.dashboard import AdapterStatus
from lora_ft.multi_lora.peft_adapter import Adapter
from lora_ft.multi_lora.resume_point import AdapterState, Pause, parameter_groups, read_resume_point, write_resume_point
from lora_ft.multi_lora.stacked_adamw import AdamWStep
from lora_ft.runs.run import ADAPTER, LOG, METRICS, WEIGHTS
from lora_ft.tasks.schema import Task
from lora_ft.training.encoder_states import EncoderStates
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.results import append_entry, hardware_name, run_metrics
from lora_ft.training.resume_keeper import ValidationStopped
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.setup import trainer_around
from lora_ft.training.trainer import loss_error, no_gradient_error


class MemberTrainer:
    """State of one adapter while it trains in a group. `AdapterGroup` drives it, one step at a time.

    Attributes:
        name: Name of its task.
        task, plan: Task, and plan of its run.
        adapter: Names, shapes and scales of its weights.
        folder: Folder of its run.
        trainer: Trainer of transformers, which evaluates, logs and keeps the state, but takes no steps.
        resumed: Step at which training was resumed.
        settled: False from a step until `settle` has logged and evaluated it.
        due: True if the member has reached a step at which training alone would save.
        failure: Reason why the member left the group without a run, or "".
        states: Encoder states of its rows, or None if every step runs the encoder. Set by the group's job.

    Args:
        data: Task, base, tokenizer and rows.
        plan: Plan of the run.
        adapter: Names, shapes and scales of its weights.
        model: Base model with the layers of the group.
        out: Folder of the run once it is finished.
        pause: Where the member leaves with a resume point. None trains to the end of the plan.
    """

    def __init__(
        self, data: PreparedData, plan: Plan, adapter: Adapter, model: Any, out: Path, pause: Pause | None = None
    ) -> None:
        self.task, self.plan, self.adapter, self.folder = data.task, plan, adapter, RunFolder.in_group(out)
        self.name, self.working = self.task.name, self.folder.working
        self._data, self._pause = data, pause
        self.folder.record(data, plan)
        self.trainer, self._reporter = trainer_around(model, data, plan, self.working, Silent())
        self.resumed, self.settled, self.due, self.failure = 0, True, False, ""
        self.states: EncoderStates | None = None
        self._order: list[int] = []
        self._loss, self._norm, self._rate = 0.0, 0.0, 0.0  # the loss is a sum since the last log
        self._logged, self._validated = 0, 0  # steps
        # Each member has its own generator, which draws in the same order as training alone; see `_draw`.
        self.generator = torch.Generator(device=model.device).manual_seed(self.task.train.seed)
        self._groups = parameter_groups(self.trainer, list(adapter.shapes), self.task.lora.loraplus_lr_ratio)

    @property
    def state(self) -> TrainerState:
        """State of transformers' trainer."""
        return self.trainer.state

    @property
    def stopped(self) -> bool:
        """True if the member takes no more steps."""
        return bool(self.failure) or (self.settled and (self.paused or self.trainer.control.should_training_stop))

    @property
    def paused(self) -> bool:
        """True if the member leaves the group with a resume point instead of a run."""
        reached = self._pause is not None and self.state.global_step == self._pause.step
        return reached and not self.failure and not self.trainer.control.should_training_stop

    @property
    def steps_left(self) -> int:
        """Maximum number of steps that the member takes before it leaves."""
        return (self._pause.step if self._pause else self.plan.steps) - self.state.global_step

    def point(self) -> tuple[dict[str, Any], AdapterState] | None:
        """Return the snapshot entry for `begin`, and the tensors, of a finished run that is trained longer."""
        return read_resume_point(self.folder, self._names, self.generator.device.type)

    @property
    def _names(self) -> list[str]:
        """Names of the weights in the order of the optimizer's parameters."""
        return [name for names, _ in self._groups for name in names]

    def begin(self, saved: dict[str, Any] | None) -> None:
        """Start training, or resume from an entry that `export` returned.

        Args:
            saved: Entry of the member in a snapshot, or None.
        """
        trainer = self.trainer
        trainer.state = TrainerState(**saved["state"]) if saved else TrainerState(epoch=0.0)
        state = trainer.state
        state.max_steps, state.num_train_epochs = (
            self.plan.steps,
            math.ceil(self.plan.steps / self.plan.steps_per_epoch),
        )
        state.train_batch_size = self.task.train.per_device_train_batch_size
        state.compute_steps(trainer.args, self.plan.steps)
        if saved:
            self._loss, self._logged = saved["loss"], saved["logged"]
            self.generator.set_state(torch.frombuffer(bytearray.fromhex(saved["random"]), dtype=torch.uint8))
            for callback in self._stoppers():
                callback.early_stopping_patience_counter = saved["patience"]
        self.resumed = state.global_step
        self.folder.trim_log(self.resumed)
        self._rated = self._optimizer()
        trainer.create_scheduler(self.plan.steps, self._rated)
        for _ in range(self.resumed):
            self._advance_rate()
        # Prepare the model once now. Otherwise the time of each evaluation would include it.
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
        self._began = time.time()
        trainer.control = trainer.callback_handler.on_train_begin(trainer.args, state, trainer.control)
        if saved and saved.get("unsettled"):
            self.settled, trainer.control = False, TrainerControl(**saved["unsettled"])

    def export(self) -> dict[str, Any]:
        """Return the entry that `begin` resumes from, for JSON."""
        patience = [callback.early_stopping_patience_counter for callback in self._stoppers()]
        return {
            "state": dataclasses.asdict(self.state) | {"stateful_callbacks": None},
            "random": self.generator.get_state().numpy().tobytes().hex(),
            "loss": self._loss,
            "logged": self._logged,
            "patience": patience[0] if patience else 0,
            "unsettled": None if self.settled else dataclasses.asdict(self.trainer.control),
        }

    def _stoppers(self) -> list[EarlyStoppingCallback]:
        return [
            callback
            for callback in self.trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return an optimizer that takes no steps. The scheduler sets its rates; the last state stores its groups."""
        kind, options = self.trainer.get_optimizer_cls_and_kwargs(self.trainer.args)
        groups = [
            {"params": [torch.nn.Parameter(torch.zeros(())) for _ in names], **settings}
            for names, settings in self._groups
        ]
        optimizer: torch.optim.Optimizer = kind(groups, **options)
        return optimizer

    def _advance_rate(self) -> None:
        scheduler: Any = self.trainer.lr_scheduler
        self._rated.step()  # otherwise torch warns that the rate was changed before a step
        scheduler.step()

    def window(self) -> list[dict[str, Tensor]]:
        """Return the batches of the next step, on the CPU, one per accumulation step."""
        trainer, train = self.trainer, self.task.train
        epoch, step = divmod(self.state.global_step, self.plan.steps_per_epoch)
        if step == 0 or not self._order:
            trainer.sampler.set_epoch(epoch)
            self._order = list(trainer.sampler)
        if step == 0:
            self._draw()
            trainer.control = trainer.callback_handler.on_epoch_begin(trainer.args, self.state, trainer.control)
        trainer.control = trainer.callback_handler.on_step_begin(trainer.args, self.state, trainer.control)
        numbers = self._order[step * self.plan.global_batch : (step + 1) * self.plan.global_batch]
        size = train.per_device_train_batch_size
        rows = self._data.rows
        first = trainer.special.start
        batches = [
            collate([rows[i] for i in numbers[start : start + size]], first) for start in range(0, len(numbers), size)
        ]
        for batch in batches:
            trainer.count(batch)
        return batches

    def _draw(self) -> None:
        """Draw and discard the number that a DataLoader draws at the start of an epoch."""
        if self.generator.device.type == "cpu":
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)

    def drop(self, batch: Mapping[str, Tensor]) -> PerAdapterDropout | None:
        """Return the member's LoRA dropout for a pass over `batch`, or None."""
        rate = self.task.lora.lora_dropout
        if not rate:
            return None
        return PerAdapterDropout(rate, self.generator, (batch["input_ids"].shape[1], batch["labels"].shape[1]))

    def next_step(self) -> AdamWStep:
        """Return the settings of the optimizer's next step."""
        train = self.task.train
        scheduler: Any = self.trainer.lr_scheduler
        self._rate = float(scheduler.get_last_lr()[0])
        return AdamWStep(
            self.state.global_step + 1,
            self._rate,
            train.weight_decay,
            train.max_grad_norm,
            self.task.lora.loraplus_lr_ratio or 1.0,
        )

    def check(self, loss: float, norm: float) -> None:
        """Record a failure if the loss is zero or not finite, or the first gradient is zero."""
        error: LoraFtError | None = loss_error(loss, self.state.global_step + 1)
        if error is None and self.state.global_step == 0 and norm == 0.0:
            error = no_gradient_error()
        if error is not None:
            self.failure = error.message

    def stepped(self, loss: float, norm: float) -> None:
        """Count a step.

        Args:
            loss: Loss of the step.
            norm: Norm of the gradient before clipping.
        """
        trainer = self.trainer
        epoch, step = divmod(self.state.global_step, self.plan.steps_per_epoch)
        accumulated = self.task.train.gradient_accumulation_steps
        batches = math.ceil(len(self._data.rows) / self.task.train.per_device_train_batch_size)
        self._advance_rate()
        self._loss, self._norm = self._loss + loss, norm
        self.state.global_step += 1
        self.settled = False
        self.state.epoch = epoch + min((step + 1) * accumulated, batches) / batches
        trainer.control = trainer.callback_handler.on_step_end(trainer.args, self.state, trainer.control)

    def settle(self, route_rows: Callable[[], None], read_weights: Callable[[], dict[str, Tensor]]) -> None:
        """Log, evaluate and end the epoch, each if it is due.

        Args:
            route_rows: Routes all rows of the model to this adapter.
            read_weights: Returns the weights of this adapter.

        Raises:
            ValidationStopped: A stop ended the validation. Call again after resuming.
        """
        trainer, before = self.trainer, dataclasses.replace(self.trainer.control)
        try:
            self._log_and_evaluate(route_rows, read_weights)
            if self.state.global_step % self.plan.steps_per_epoch == 0 or trainer.control.should_training_stop:
                trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, self.state, trainer.control)
                self._log_and_evaluate(route_rows, read_weights)
            if self._pause and self._pause.is_scored and self.paused and self._validated != self.state.global_step:
                scores = self._validate(route_rows, trainer.score)
                append_entry(self.working / LOG, {"step": self.state.global_step} | scores)
        except ValidationStopped:
            trainer.control = before
            raise
        self.settled = True

    def _log_and_evaluate(self, route_rows: Callable[[], None], read_weights: Callable[[], dict[str, Tensor]]) -> None:
        trainer, state = self.trainer, self.state
        if trainer.control.should_log and state.global_step > self._logged:
            mean = self._loss / (state.global_step - self._logged)
            self._loss, self._logged = 0.0, state.global_step
            trainer.log({"loss": mean, "grad_norm": self._norm, "learning_rate": self._rate})
        if trainer.control.should_evaluate and self._is_best(self._validate(route_rows, trainer.evaluate)):
            self._keep_best(read_weights())
        self.due = self.due or trainer.control.should_save
        trainer.control.should_save = False

    def _validate(self, route_rows: Callable[[], None], score: Callable[[], dict[str, float]]) -> dict[str, float]:
        route_rows()
        model: Any = self.trainer.model
        model.generation_config.max_new_tokens = self.task.max_new_tokens
        scores, self._validated = score(), self.state.global_step
        return scores

    def _is_best(self, metrics: dict[str, float]) -> bool:
        args, state = self.trainer.args, self.state
        value = metrics[f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"]
        better = value > (state.best_metric or 0.0) if args.greater_is_better else value < (state.best_metric or 0.0)
        if math.isnan(value) or not (better or state.best_metric is None):
            return False
        state.best_metric, state.best_global_step = value, state.global_step
        return True

    def _keep_best(self, weights: dict[str, Tensor]) -> None:
        folder = self._best_folder()
        self.adapter.write(weights, folder, self._data.base)
        sync_tree(folder)

    def _best_folder(self) -> Path:
        return self.working / f"checkpoint-{self.state.best_global_step}"

    def prune(self) -> None:
        """Delete weights that are no longer the best, once no snapshot refers to them."""
        for folder in self.working.glob("checkpoint-*"):
            if folder != self._best_folder():
                shutil.rmtree(folder)

    def pause(self, tensors: AdapterState) -> None:
        """Write the state from which another group continues; `publish` comes next."""
        self._write_state(dataclasses.replace(tensors, unlogged=(self._loss, self._logged)))
        trainer = self.trainer
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, self.state, trainer.control)

    def _write_state(self, tensors: AdapterState) -> None:
        last = self.working / f"checkpoint-{self.state.global_step}"
        self.adapter.write(tensors.weights, last, self._data.base)
        write_resume_point(last, self.trainer, self._rated, self._names, tensors, self.generator)

    def close(self, tensors: AdapterState, share: dict[str, Any]) -> None:
        """Write the adapter, its last state and its metrics; `publish` comes next.

        Args:
            tensors: Current weights and moments. If another step was the best, its weights are published instead.
            share: Metrics of the member's share of the group.
        """
        trainer, state, weights = self.trainer, self.state, tensors.weights
        self._write_state(tensors)
        if state.best_metric is not None and state.best_global_step != state.global_step:
            weights = load_file(self._best_folder() / WEIGHTS)
        steps = state.global_step - self.resumed
        trainer.log(
            speed_metrics("train", self._began, num_samples=steps * self.plan.global_batch, num_steps=steps)
            | {"train_loss": self._mean_loss()}
        )
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
        self.adapter.write(weights, self.working / ADAPTER, self._data.base)
        metrics = run_metrics(self._data, self.plan, trainer, self._reporter, time.time() - self._began)
        write_json(
            self.working / METRICS,
            metrics
            | {
                "trainable_parameters": self.adapter.parameters,
                "resumed_at": self.resumed,
                "hardware": hardware_name(self.plan),
                **share,
            },
        )

    def _mean_loss(self) -> float:
        """Return the mean loss of all steps, as transformers records it. Steps after the last log count too."""
        logged = [entry for entry in self.state.log_history if "loss" in entry]
        starts = [0, *(entry["step"] for entry in logged)]
        total = sum(entry["loss"] * (entry["step"] - start) for entry, start in zip(logged, starts, strict=False))
        return (total + self._loss) / max(self.state.global_step, 1)

    def row(self, seconds: float, note: str = "") -> AdapterStatus:
        """Return the status of the member; `seconds` is the duration of a step."""
        state, train = self.state, self.task.train
        losses = [entry for entry in state.log_history if "loss" in entry]
        metric = train.metric_for_best_model
        scores = [entry[f"eval_{metric}"] for entry in state.log_history if f"eval_{metric}" in entry]
        return AdapterStatus(
            self.name,
            state.global_step,
            self.plan.steps,
            losses[-1]["loss"] if losses else None,
            metric,
            scores[-1] if scores else None,
            self.plan.global_batch / seconds if seconds else None,
            (self.plan.steps - state.global_step) * seconds if seconds else None,
            note,
        )


def publish(task: Task, folder: RunFolder) -> None:
    """Finish the run of a closed member. A paused member, which has no metrics, keeps its last state instead.

    Its last state is marked complete only now, after a snapshot without the member was written. Otherwise a killed
    process would mistake it for the state that the member began with.
    """
    folder.mark_checkpoints()
    if (folder.working / METRICS).is_file():
        folder.finish(task, read_json(folder.working / METRICS))
    else:
        folder.keep_newest()


def failure_text(error: Exception) -> str:
    """Return the reason why an adapter failed, from the error raised while it was evaluated or written."""
    return error.message if isinstance(error, LoraFtError) else f"{type(error).__name__}: {error}"
