"""Extend transformers' Seq2SeqTrainer for FLAN-T5: token-exact loss, batches by length, loss checks, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from lora_ft.core.errors import LoraFtError, LossError
from lora_ft.core.progress import Progress
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import IGNORED
from lora_ft.data.batching import Encoded, LengthSampler, collate, count_positions
from lora_ft.models.generation import without_defaults
from lora_ft.training import resume_points
from lora_ft.training.cross_entropy import SummedCrossEntropy, by_token
from lora_ft.training.distillation import Teacher
from lora_ft.training.encoder_states import EncoderStates
from lora_ft.training.packed_stack import PackedStacks
from lora_ft.training.resume_keeper import ValidationStopped


class Rows(Dataset[Encoded]):
    """Encoded rows as a torch data set."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return self.rows[index]


def token_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, *, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy summed over this batch's tokens, divided by the number of tokens in the whole step.

    T5's own loss is the mean of each micro-batch. With accumulation or several processes, short batches would then
    weigh as much as long ones.

    Args:
        outputs: Outputs of the model, with logits [rows, t, vocabulary], or packed ones [tokens, vocabulary].
        labels: Target tokens [rows, t]; `IGNORED` marks padding.
        num_items_in_batch: Number of tokens in the whole step. None counts those of this batch.
        smoothing: train.label_smoothing_factor, which transformers applies only without a custom loss function.
    """
    logits, targets = by_token(outputs.logits, labels)
    if logits.requires_grad and logits.dtype == torch.bfloat16 and logits.device.type == "cpu" and not smoothing:
        total = SummedCrossEntropy.apply(logits, targets, IGNORED)
    else:
        total = nn.functional.cross_entropy(
            logits.float(), targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of `Trainer` that transformers' arguments lack.

    Attributes:
        special: Special tokens of the model.
        bf16: True if the forward pass computes under bf16 autocast. Weights and optimizer stay float32.
        compiled: True if the model is compiled. Evaluation runs it uncompiled, since recompiling takes minutes.
        smoothing: train.label_smoothing_factor.
        teacher: Teacher to learn from besides the targets, or None.
        loraplus_lr_ratio: Ratio of the learning rates of B and A (LoRA+), or None for equal rates.
        generation: Options of `generate` in evaluation.
    """

    special: SpecialTokens
    bf16: bool = False
    compiled: bool = False
    smoothing: float = 0.0
    teacher: Teacher | None = None
    loraplus_lr_ratio: float | None = None
    generation: dict[str, Any] = field(default_factory=dict)


class Trainer(Seq2SeqTrainer):
    """Trainer of an adapter or of a whole model.

    A validation draws no random numbers of the training, so it may run before or after the checkpoint of its step is
    written. A stop can therefore leave it out, and `--resume` makes up for it (`validate_first`).

    Args:
        settings: Settings that transformers' arguments lack.
        train_rows: Encoded training rows.
        eval_rows: Encoded validation rows; may be empty.
        args: Arguments of transformers' trainer.
        options: Further arguments of transformers' trainer.

    Attributes:
        counts: Unpadded positions, all positions and rows of the batches so far, in this process.
        packing: Packed rows of the model, for training steps and validations by loss. None if all rows are padded.
        states: States of a frozen encoder, or None if every step runs the encoder.
    """

    optimizer: Any  # transformers', set by `create_optimizer`

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        train_rows: Sequence[Encoded],
        eval_rows: Sequence[Encoded],
        args: Any,
        **options: Any,
    ) -> None:
        self._settings, self.special = settings, settings.special
        loss = settings.teacher.loss if settings.teacher else token_loss
        if settings.smoothing:
            loss = functools.partial(token_loss, smoothing=settings.smoothing)
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.sampler = LengthSampler(train_rows, batch, args.seed)
        self.counts = (0, 0, 0)
        self.packing: PackedStacks | None = None
        self.states: EncoderStates | None = None
        super().__init__(
            args=args,
            train_dataset=Rows(train_rows),
            eval_dataset=Rows(eval_rows) if eval_rows else None,
            data_collator=functools.partial(collate, start=self.special.start),
            compute_loss_func=loss,
            **options,
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *_: Any) -> LengthSampler:
        return self.sampler

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        if self._settings.loraplus_lr_ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                self.model,
                kind,
                loraplus_lr_ratio=self._settings.loraplus_lr_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **options,
            )
        return super().create_optimizer(*args)  # transformers 5 passes the model

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._settings.bf16)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        if self.packing and self.packing.active:
            inputs = {**inputs, "decoder_attention_mask": inputs["labels"] != IGNORED}
        if self._settings.teacher:
            self._settings.teacher.read(inputs)
        if self.states is not None and model.training:
            inputs = {**inputs, "encoder_outputs": (self.states.read(inputs),)}
        return super().compute_loss(model, inputs, *args, **options)

    def count(self, batch: dict[str, Tensor]) -> None:
        """Add a training batch to `counts`."""
        real, padded, rows = self.counts
        own_real, own_padded = count_positions(batch)
        self.counts = (real + own_real, padded + own_padded, rows + len(batch["labels"]))

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        self.count(inputs)
        loss = super().training_step(model, inputs, *args, **options)
        self._guard(loss.item())
        return loss

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        if self._is_over():  # only if resumed at its end, where transformers would take another step
            self.control.should_training_stop = True
            return [], None
        batches: tuple[list[Any], Any] = super().get_batch_samples(*args, **options)
        return batches

    def _is_over(self) -> bool:
        """Return True if the last step was taken, or early stopping ended the training."""
        stoppers = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        return self.state.global_step >= self.state.max_steps or any(
            each.early_stopping_patience_counter >= each.early_stopping_patience for each in stoppers
        )

    def validate_first(self) -> None:
        """Let `train` begin with the validation that its checkpoint lacks."""
        self.args.eval_on_start = True

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        scores: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if skip_scheduler:  # transformers' mark of a validation before the first step
            checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            if self._determine_best_metric(scores, trial):
                self.state.best_model_checkpoint = str(checkpoint)
            if self.args.should_save:
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, ExportableState):
                        self.state.stateful_callbacks[type(callback).__name__] = callback.state()
                resume_points.add_validation(checkpoint, dataclasses.asdict(self.state))
        return scores

    def score(self) -> dict[str, float]:
        """Return the scores of the validation rows without counting as an evaluation: no log, best step or patience."""
        with torch.random.fork_rng(devices=[]):
            result = self.evaluation_loop(
                self.get_eval_dataloader(), "scoring", prediction_loss_only=self.compute_metrics is None
            )
        return result.metrics or {}

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number
            scores: dict[str, float] = super().evaluate(*args, **options)
        return scores

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **options)
        except ValidationStopped:
            self.control.should_evaluate, self.control.should_save = False, True
            self.control.should_training_stop = True
            super()._maybe_log_save_evaluate(*args, **options)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nobody reads the sum, and counting parameters takes 1 % of a step of FLAN-T5-small

    def prediction_step(self, model: nn.Module, inputs: Any, prediction_loss_only: bool, **options: Any) -> Any:
        mode: AbstractContextManager[Any] = contextlib.nullcontext()
        if self._settings.compiled:
            mode = torch.compiler.set_stance("force_eager")
        elif self.packing and prediction_loss_only:
            mode = self.packing.scoring()
        with mode, without_defaults(self.model, self.special):
            return super().prediction_step(model, inputs, prediction_loss_only, **self._settings.generation, **options)

    def _guard(self, loss: float) -> None:
        """Raise an error for a loss that is zero or not finite, which the logged mean would hide."""
        if error := loss_error(loss, self.state.global_step + 1):
            raise error
        if self.state.global_step == 0 and not self._has_gradient():
            raise no_gradient_error()

    def _has_gradient(self) -> bool:
        gradients = [p.grad for p in self.model.parameters() if p.requires_grad]
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def loss_error(loss: float, step: int) -> LossError | None:
    """Return the error for a loss that is zero or not finite, or None."""
    if math.isfinite(loss) and loss != 0.0:
        return None
    if loss == 0.0:
        return LossError(
            f"the loss of step {step} is exactly 0",
            "check that the targets are not empty, or set train.precision=fp32 against underflow",
        )
    return LossError(
        f"the loss of step {step} is not finite (got {loss})",
        "lower train.learning_rate, or set train.precision=fp32; the last checkpoint is kept for --resume",
    )


def no_gradient_error() -> LoraFtError:
    """Return the error for a first step in which no trained weight has a gradient."""
    return LoraFtError(
        "no gradient reaches the trained weights in step 1",
        "lower train.base_dropout and lora.lora_dropout, or set train.gradient_checkpointing=false",
    )


class ProgressReporter(TrainerCallback):
    """Callback that reports loss, speed, padding and scores to the progress display.

    Args:
        progress: Display.
        counts: Returns the trainer's unpadded positions, positions and rows so far.
        log: Receives every entry of the log.

    Attributes:
        steps: (samples, seconds) of every training step in this process, without evaluation and saving.
    """

    def __init__(
        self, progress: Progress, counts: Callable[[], tuple[int, int, int]], log: Callable[[Any], None]
    ) -> None:
        self._progress, self._counts, self._log = progress, counts, log
        self._figures = ""
        self._score = ""
        self._mark = (0.0, (0, 0, 0))  # time and counts at the last log
        self.steps: list[tuple[int, float]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.stage("training", state.max_steps, state.global_step)
        self._mark = (time.perf_counter(), self._counts())

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step_began, self._rows_before = time.perf_counter(), self._counts()[2]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        samples = (self._counts()[2] - self._rows_before) * args.world_size  # an epoch's last batch may be short
        self.steps.append((samples, time.perf_counter() - self._step_began))
        self._progress.advance(state.global_step, self._figures + self._score)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        self._log({"step": state.global_step, **(logs or {})})
        if not logs or "loss" not in logs:
            return
        then, counts_then = self._mark
        now, counts = time.perf_counter(), self._counts()
        seconds = max(now - then, 1e-9)
        real, padded, rows = (after - before for after, before in zip(counts, counts_then, strict=True))
        self._figures = (
            f"loss {logs['loss']:.3f}  {rows * args.world_size / seconds:.1f} samples/s  "
            f"{real * args.world_size / seconds:,.0f} tokens/s  padding {1 - real / max(padded, 1):.0%}"
        )
        self._mark = (now, counts)
        self._progress.advance(state.global_step, self._figures + self._score)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        best_metric = str(args.metric_for_best_model).removeprefix("eval_")
        names = dict.fromkeys(("loss", best_metric))
        shown = [f"{name} {metrics[f'eval_{name}']:.3g}" for name in names if f"eval_{name}" in metrics]
        self._score = f"  eval {' '.join(shown)}"
        self._progress.note(f"step {state.global_step}: validation {', '.join(shown)}")
        if not math.isfinite((metrics or {}).get(f"eval_{best_metric}", 0.0)):
            self._progress.note(f"warning: the validation {best_metric} is not a number, so it chooses no checkpoint")
        self._mark = (time.perf_counter(), self._counts())


class Curves(TensorBoardCallback):
    """TensorBoard callback that writes the task and one set of curves into the run, even if it is resumed."""

    def __init__(self, folder: Path, task: str) -> None:
        super().__init__()
        self._folder, self._task = folder, task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # hide events after the step at which a run is resumed, since those steps are repeated
        purge = state.global_step + 1 if state.global_step else None
        self.tb_writer = SummaryWriter(str(self._folder), purge_step=purge)
        self.tb_writer.add_text("task", f"```yaml\n{self._task}```")
        super().on_train_begin(args, state, control, **options)
