"""Section `train` of a task: the training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lora_ft.tasks.fields import Dropout, Positive, Real, Rows, Section, Seed, Share
from lora_ft.tasks.metric_names import check_score

MAX_RATE = 3e37  # float32 ends at 3.4e38


class Distill(Section):
    """Distillation: besides the targets, learn the probabilities that a teacher assigns to each next token."""

    teacher: str
    """Run, adapter, checkpoint or base, with the tokens of the base. It reads the task's own prompts."""
    alpha: Annotated[Real, Field(ge=0, lt=1)] = 0.5
    """Weight of the cross-entropy on the targets. The divergence from the teacher has the rest."""
    temperature: Annotated[Real, Field(ge=0.1, le=100)] = 1.0
    """Divisor of both models' logits in the divergence, which is multiplied by its square."""


class Train(Section):
    """The training run, by the names of transformers' Seq2SeqTrainingArguments."""

    num_train_epochs: Annotated[Real, Field(gt=0, le=100_000)] = 3.0
    """Number of passes over the training rows."""
    max_steps: Positive | None = None
    """Maximum number of optimizer steps; takes precedence over num_train_epochs."""
    per_device_train_batch_size: Rows = 8
    """Rows of a training batch on each device."""
    per_device_eval_batch_size: Rows = 16
    """Rows of an evaluation batch on each device."""
    gradient_accumulation_steps: Rows = 1
    """Batches of one optimizer step."""
    # AdamW multiplies it by 10 in the first step, and float32 ends at 3.4e38.
    learning_rate: Annotated[Real, Field(gt=0, le=MAX_RATE)] = 1e-3
    """Peak learning rate."""
    lr_scheduler_type: str = "linear"
    """Schedule: linear, cosine, constant, constant_with_warmup, polynomial or inverse_sqrt."""
    warmup_ratio: Share = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: Annotated[Real, Field(ge=0, le=100)] = 0.0
    """Weight decay of the optimizer."""
    max_grad_norm: Annotated[Real, Field(ge=0, le=1e9)] = 1.0
    """Maximum gradient norm; 0 turns clipping off."""
    label_smoothing_factor: Annotated[Real, Field(ge=0, le=0.9)] = 0.0
    """Share of each target token's probability spread over the vocabulary, in training only (not in eval_loss)."""
    distill: Distill | None = None
    """Teacher to learn from besides the targets. Default: none. Evaluation measures the targets only."""
    optim: str = "adamw_torch"
    """Optimizer: adamw_torch, adamw_torch_fused or adafactor."""
    seed: Seed = 42
    """Seed of initialization, dropout and the order of rows."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """Number format of training. auto: bf16 if the GPU or CPU has bf16 arithmetic, else fp32. fp16 is refused."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile with dynamic shapes: minutes of compilation, then faster steps. auto: on if that pays off."""
    base_dropout: Dropout | None = None
    """Dropout rate inside the base. Default: 0 for a frozen base, which is a quarter faster on CPUs without loss of
    ROUGE on DialogSum; with method full, the base's own rate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Takes less memory and is a third slower."""
    eval_every: Positive | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows. Each one also writes a resume point."""
    metric_for_best_model: str = "rouge1"
    """Metric that selects the final weights: loss, or a score as in evaluate.metric. With loss, training generates
    no text."""
    early_stopping_patience: Positive | None = None
    """Number of evaluations without improvement after which training stops."""
    save_total_limit: Positive = 2
    """Number of resume points kept during training: the newest ones, and the best."""
    logging_steps: Positive = 10
    """Steps between log entries."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Experiment trackers that receive the log."""

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        """Return on and off as text, which YAML reads as true and false."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _no_smoothed_teacher(self) -> Train:
        if self.distill is not None and self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect with distill; remove one of the two")
        return self

    @field_validator("precision")
    @classmethod
    def _refuse_fp16(cls, value: str) -> str:
        if value == "fp16":
            raise ValueError(
                "T5 overflows in fp16 (its wo layers reach 66,246, fp16 ends at 65,504: transformers#5651); "
                "use auto, bf16 or fp32"
            )
        return value

    @field_validator("metric_for_best_model")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return value if value == "loss" else check_score(value)

    @field_validator("lr_scheduler_type")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        names = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
        if value not in names:
            raise ValueError(f"unknown scheduler; use one of {', '.join(names)}")
        return value

    @field_validator("optim")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        names = ("adamw_torch", "adamw_torch_fused", "adafactor")
        if value not in names:
            raise ValueError(f"unknown optimizer; use one of {', '.join(names)}")
        return value
