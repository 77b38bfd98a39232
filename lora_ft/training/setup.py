"""Build the trainer of a task: weights, transformers' arguments, and the callbacks that log, report and save."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, EvalPrediction, Seq2SeqTrainingArguments

from lora_ft.core.constraint import SCHEMA, constrained
from lora_ft.core.distributed import processes, rank
from lora_ft.core.generation_options import Options
from lora_ft.core.hardware import torch_threads
from lora_ft.core.memory import keep_freed_memory
from lora_ft.core.progress import Progress
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded, encode
from lora_ft.evaluation.metrics import measure, score
from lora_ft.export.checkpoint.generation_config import Generation
from lora_ft.models.backends import allowed_tokens
from lora_ft.models.bases import cache_folder
from lora_ft.models.generation import model_generation, torch_options
from lora_ft.models.initialization import INITIAL
from lora_ft.runs.run import CURVES, LOG
from lora_ft.tasks.files import task_text
from lora_ft.tasks.metric_names import FROM_SOURCE
from lora_ft.tasks.schema import Task
from lora_ft.training.distillation import open_teacher
from lora_ft.training.encoder_states import EncoderStates, distinct_prompts
from lora_ft.training.packed_stack import PackedStacks
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.results import append_entry
from lora_ft.training.resume_keeper import ResumeKeeper
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.trainer import Curves, ProgressReporter, Trainer, TrainerSettings
from lora_ft.training.weights import open_weights


def build_trainer(
    data: PreparedData, plan: Plan, folder: RunFolder, progress: Progress
) -> tuple[Trainer, ResumeKeeper, ProgressReporter]:
    """Open the weights of a task and return its trainer, ready to start, with two of its callbacks.

    Args:
        data: Task, base, tokenizer and rows.
        plan: Plan of the run.
        folder: Folder of the run. Its working folder receives checkpoints and the log, and may contain the initial
            weights of an adapter to resume from.
        progress: Receives loss, speed and scores.
    """
    if plan.device == "cpu":
        torch.set_num_threads(torch_threads())
        keep_freed_memory()
    model = open_weights(data, plan, folder.working / INITIAL)
    if plan.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        model.compile(dynamic=True)
    packing = PackedStacks(model) if plan.packed else None
    trainer, reporter = trainer_around(model, data, plan, folder.working, progress)
    trainer.packing = packing
    if plan.keeps_states:
        trainer.states = EncoderStates(model, distinct_prompts(data.rows), packed=plan.packed)
    keeper = ResumeKeeper(trainer.sampler, folder, data.task.train.save_total_limit)
    trainer.add_callback(keeper)
    return trainer, keeper, reporter


def trainer_around(
    model: torch.nn.Module, data: PreparedData, plan: Plan, working: Path, progress: Progress
) -> tuple[Trainer, ProgressReporter]:
    """Return a trainer of an open model, and the callback that reports its progress.

    Args:
        model: Base with an adapter on it, or base with all weights trainable.
        data: Task, tokenizer and rows. Without validation examples there are no evaluations.
        plan: Plan of the run.
        working: Working folder of the run, which receives the log.
        progress: Receives loss, speed and scores.
    """
    task, tokenizer = data.task, data.tokenizer
    eval_rows = encode(data.validation, tokenizer, task.lengths, "validation")
    arguments = _arguments(task, plan, working, bool(eval_rows))
    log = working / LOG
    base_options = model_generation(model)
    trainer = Trainer(
        model=model,
        args=arguments,
        settings=TrainerSettings(
            special=base_options.special,
            bf16=plan.precision.is_bf16,
            compiled=plan.compile,
            smoothing=task.train.label_smoothing_factor,
            teacher=open_teacher(task.train.distill, plan) if task.train.distill else None,
            loraplus_lr_ratio=task.lora.loraplus_lr_ratio,
            generation=_generation(task, base_options, tokenizer),
        ),
        train_rows=data.rows,
        eval_rows=eval_rows,
        compute_metrics=_scorer(task, tokenizer, eval_rows) if arguments.predict_with_generate else None,
    )
    reporter = ProgressReporter(progress, lambda: trainer.counts, lambda entry: append_entry(log, entry))
    if arguments.should_save:
        trainer.add_callback(reporter)
        if "tensorboard" in task.train.report_to:
            trainer.add_callback(Curves(working / CURVES, task_text(task)))
    if task.train.early_stopping_patience and eval_rows:
        trainer.add_callback(EarlyStoppingCallback(task.train.early_stopping_patience))
    return trainer, reporter


def _generation(task: Task, base_options: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the options of `generate` for validation rows: those of the task, without sampling and without a schema.

    transformers' trainer keeps one set of options for all batches, while a schema needs the state of each.
    """
    options = base_options.options | task.generation_options() | {"do_sample": False, SCHEMA: None}
    labels, _ = options.pop("labels", ()), options.pop("seed", None)
    settings = torch_options(Options.of(constrained(options, tokenizer)))
    if labels:
        end = base_options.special.closed_by(tokenizer.closing).end
        settings["prefix_allowed_tokens_fn"] = allowed_tokens(labels, tokenizer, end)
    return settings


def _arguments(task: Task, plan: Plan, working: Path, validated: bool) -> Seq2SeqTrainingArguments:
    """Return the arguments of transformers' trainer; `validated` is True if there are validation rows."""
    train = task.train
    every = "epoch" if train.eval_every == "epoch" else "steps"
    interval = {} if train.eval_every == "epoch" else {"eval_steps": train.eval_every, "save_steps": train.eval_every}
    recompute: dict[str, Any] = (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        if train.gradient_checkpointing
        else {}
    )
    # Every trained weight has a gradient in every step.
    distributed: dict[str, Any] = {"ddp_find_unused_parameters": False}
    if plan.device == "cpu" and processes() > 1:
        distributed["ddp_backend"] = "gloo"
    return Seq2SeqTrainingArguments(
        output_dir=str(working),
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.per_device_train_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        # the same arithmetic in one call per tensor instead of nine: 4 instead of 17 ms of a step on two cores
        optim="adamw_torch_fused" if train.optim == "adamw_torch" else train.optim,
        seed=train.seed,
        use_cpu=plan.device == "cpu",
        eval_strategy=every if validated else "no",
        save_strategy=every,
        load_best_model_at_end=validated,
        metric_for_best_model=train.metric_for_best_model if validated else None,
        greater_is_better=train.metric_for_best_model != "loss" if validated else None,
        save_total_limit=None,  # `ResumeKeeper` deletes checkpoints, after the newer one is sealed
        predict_with_generate=validated and train.metric_for_best_model != "loss",
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # `Trainer._guard` stops on such a loss
        report_to=[name for name in train.report_to if name != "tensorboard"] if rank() == 0 else [],  # see `Curves`
        run_name=task.name,
        label_names=["labels"],  # a PeftModel hides them, and eval_loss would be missing (peft#1881)
        remove_unused_columns=False,
        dataloader_pin_memory=plan.device == "cuda",
        disable_tqdm=True,
        **interval,
        **recompute,
        **distributed,
    )


def _scorer(task: Task, tokenizer: Tokenizer, rows: Sequence[Encoded]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a function that scores generated validation answers, including the metric that chooses checkpoints."""
    references = [row.references for row in rows]
    metrics = [name for name in task.evaluate.metrics if name not in FROM_SOURCE]

    def score_all(prediction: EvalPrediction) -> dict[str, float]:
        # with several processes, the last batch is filled with copies of the first rows
        texts = tokenizer.decode(prediction.predictions[: len(references)])
        scores = measure(metrics, texts, references, task.evaluate)
        best_metric = task.train.metric_for_best_model
        if best_metric not in scores:
            scores[best_metric] = score(best_metric, texts, references, task.evaluate)
        return {name: scored.value for name, scored in scores.items()}

    return score_all
