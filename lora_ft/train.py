"""The job `train`: a task in, a run out."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, EvalPrediction, Seq2SeqTrainingArguments

from export.errors import LoraFtError, UsageError
from export.files import read_json, refuse_existing, replace_folder, sync_tree, write_json, write_text
from export.runtime.cpu import allowed_cpus, cpu_name
from export.runtime.text import END, Tokenizer
from lora_ft import checkpoints
from lora_ft.bases import Base, cache_folder, find_base, load_tokenizer, quiet_transformers
from lora_ft.batches import Encoded, encode
from lora_ft.card import Facts, run_card
from lora_ft.data import Example, Splits, load_splits, require, with_labels
from lora_ft.energy import SOURCES, meter
from lora_ft.engines import allowed_tokens
from lora_ft.initial import INITIAL, keep_start
from lora_ft.labels import check_labels
from lora_ft.memory import keep_freed_memory
from lora_ft.metrics import measure, score
from lora_ft.plan import Choices, Plan, make_plan
from lora_ft.precision import Precision
from lora_ft.progress import Progress, Silent
from lora_ft.runs import CARD, CURVES, LOG, METRICS, TASK, Run, unfinished
from lora_ft.task import AUTO, Task
from lora_ft.taskfile import load_task, save_task, task_text
from lora_ft.trainer import Curves, Keeper, Reporter, Trainer
from lora_ft.weights import open_weights, save_weights

_CHOICES = "choices.json"


class Interrupted(LoraFtError):
    """Training was stopped by Ctrl-C after a checkpoint."""

    exit_code = 130


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
    progress = progress if progress is not None and _rank() == 0 else Silent()
    working = unfinished(out)
    _claim(task, out, working, resume=resume, overwrite=overwrite)
    base = find_base(task.base)
    if base.notice:
        progress.note(base.notice)
    tokenizer = load_tokenizer(base.folder, task.codec, task.lora.new_tokens)
    task = with_labels(task)
    check_labels(task, tokenizer)
    splits = load_splits(task)  # the test rows too: a fault in them, or an overlap, is better known now
    rows = encode(require(splits, "train", task), tokenizer, task.lengths, "train")
    if splits.overlap:
        progress.note(
            f"warning: {splits.overlap:,} prompts of other rows are training prompts too; scores will flatter"
        )
    validation = sorted(splits.validation, key=lambda example: -len(example.prompt))
    plan = make_plan(task, base.config, rows, _processes(), _choices(working) if resume else None)
    for line in plan.lines():
        progress.note(line)
    trainer, keeper, reporter = build_trainer(task, plan, base, tokenizer, rows, validation, working, progress)
    checkpoint = _start(task, plan, working, trainer, resume=resume)
    resumed = 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))
    _trim_log(working / LOG, resumed)
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
    if _rank() == 0:
        save_weights(task, trainer.model, base, tokenizer, working)
        metrics = _metrics(task, plan, base, trainer, reporter, splits, time.time() - began) | {
            "resumed_at": resumed,
            "energy": {"joules": round(joules() - before, 1), "source": SOURCES[plan.device]} if joules else None,
            "hardware": _hardware(plan),
        }
        _finish(task, working, out, metrics, base)
    if _processes() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return Run(out)


def _claim(task: Task, out: Path, working: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that this run may be written, before anything else is done."""
    if _rank() != 0:
        return
    refuse_existing(out, overwrite=overwrite)
    if resume:
        if not (working / TASK).is_file():
            raise UsageError(f"there is no unfinished run {working} to resume", "leave out --resume")
        before = load_task(working / TASK)
        if task.labels == AUTO:  # they were found when it began
            task = task.model_copy(update={"labels": before.labels})
        if before != task:
            changed = [name for name in Task.model_fields if getattr(before, name) != getattr(task, name)]
            raise UsageError(
                f"the unfinished run {working} was started with another {', '.join(changed)}",
                "resume with the same task and --set, or start anew with --overwrite",
            )
    elif working.exists() and not overwrite:
        raise UsageError(f"an unfinished run lies in {working}", "add --resume to go on, or --overwrite to start anew")
    elif working.exists():
        shutil.rmtree(working)


def _choices(working: Path) -> Choices | None:
    """What the unfinished run chose when it began; another machine, or the same one under load, might choose anew."""
    path = working / _CHOICES
    if not path.is_file():
        return None
    found = read_json(path)
    return Choices(Precision(found["precision"], "as this run began"), found["compile"])


def _start(task: Task, plan: Plan, working: Path, trainer: Trainer, *, resume: bool) -> Path | None:
    """Write down what is being trained and how, and find the checkpoint to go on from."""
    if _rank() == 0:
        working.mkdir(parents=True, exist_ok=True)
        save_task(task, working / TASK)
        write_json(working / _CHOICES, {"precision": plan.precision.name, "compile": plan.compile})
        if task.method == "lora" and task.lora.starts_elsewhere:
            keep_start(trainer.model, working / INITIAL)
        found = checkpoints.latest(working)
    if _processes() > 1:
        torch.distributed.barrier()
    if _rank() != 0:
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
    train = task.train
    if plan.device == "cpu":
        torch.set_num_threads(max(1, allowed_cpus() // _processes()))
        keep_freed_memory()
    model = open_weights(task, plan, base, tokenizer, rows, working / INITIAL)
    if plan.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        model.compile(dynamic=True)
    eval_rows = encode(validation, tokenizer, task.lengths, "validation")
    arguments = _arguments(task, plan, working, bool(eval_rows))
    log = working / LOG
    labels = task.generation_options().get("labels")
    trainer = Trainer(
        model=model,
        args=arguments,
        loraplus_lr_ratio=task.lora.loraplus_lr_ratio,
        bf16=plan.precision.is_bf16,
        compiled=plan.compile,
        train_rows=rows,
        eval_rows=eval_rows,
        generation={"prefix_allowed_tokens_fn": allowed_tokens(labels, tokenizer, END)} if labels else {},
        compute_metrics=_scorer(task, tokenizer, eval_rows) if arguments.predict_with_generate else None,
    )
    keeper = Keeper(trainer.sampler, working, train.save_total_limit)
    reporter = Reporter(progress, lambda: trainer.positions, lambda entry: _append(log, entry))
    trainer.add_callback(keeper)
    if arguments.should_save:
        trainer.add_callback(reporter)
        if "tensorboard" in train.report_to:
            trainer.add_callback(Curves(working / CURVES, task_text(task)))
    if train.early_stopping_patience and eval_rows:
        trainer.add_callback(EarlyStoppingCallback(train.early_stopping_patience))
    return trainer, keeper, reporter


def _arguments(task: Task, plan: Plan, working: Path, validated: bool) -> Seq2SeqTrainingArguments:
    train = task.train
    every = "epoch" if train.eval_every == "epoch" else "steps"
    interval = {} if train.eval_every == "epoch" else {"eval_steps": train.eval_every, "save_steps": train.eval_every}
    recompute: dict[str, Any] = (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        if train.gradient_checkpointing
        else {}
    )
    distributed: dict[str, Any] = {"ddp_find_unused_parameters": False}  # every adapter takes part in every step
    if plan.device == "cpu" and _processes() > 1:
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
        optim=train.optim,
        seed=train.seed,
        use_cpu=plan.device == "cpu",
        eval_strategy=every if validated else "no",
        save_strategy=every,
        load_best_model_at_end=validated,
        metric_for_best_model=train.metric_for_best_model if validated else None,
        greater_is_better=train.metric_for_best_model != "loss" if validated else None,
        save_total_limit=None,  # `Keeper` deletes checkpoints, after the newer one is sealed
        predict_with_generate=validated and train.metric_for_best_model != "loss",
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # the trainer stops on such a loss
        report_to=[name for name in train.report_to if name != "tensorboard"] if _rank() == 0 else [],  # see `Curves`
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
    """Scores of what was generated for the validation rows, in their order; the one that chooses is among them."""
    references = [row.references for row in rows]

    def score_all(prediction: EvalPrediction) -> dict[str, float]:
        # several processes repeat the first rows at the end to fill their last batch
        texts = tokenizer.decode(prediction.predictions[: len(references)])
        scores = measure(task.evaluate.metrics, texts, references, task.evaluate)
        chooses = task.train.metric_for_best_model
        if chooses not in scores:
            scores[chooses] = score(chooses, texts, references, task.evaluate)
        return {name: found.value for name, found in scores.items()}

    return score_all


def _metrics(
    task: Task, plan: Plan, base: Base, trainer: Trainer, reporter: Reporter, splits: Splits, seconds: float
) -> dict[str, Any]:
    samples, spent = (sum(step[i] for step in reporter.steps) for i in (0, 1))
    late = reporter.steps[len(reporter.steps) // 2 :]
    real, padded = trainer.positions
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "base": {
            "name": base.name,
            "notice": base.notice,
            **{key: base.config[key] for key in ("d_model", "vocab_size", "num_layers")},
        },
        "rows": {"train": len(splits.train), "validation": len(splits.validation)},
        "steps": trainer.state.global_step,
        "global_batch": plan.global_batch,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "precision": plan.precision.name,
        "compiled": plan.compile,
        "train_loss": next((e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e), math.nan),
        "best_metric": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "evaluations": [{k: v for k, v in e.items() if k == "step" or k.startswith("eval_")} for e in evaluations],
        "speed": {
            "seconds": round(seconds, 1),
            "seconds_in_steps": round(spent, 1),
            "samples_per_second": round(samples / spent, 2) if spent else None,
            "samples_per_second_second_half": round(sum(s for s, _ in late) / sum(t for _, t in late), 2)
            if late
            else None,
            "padding_share": round(1 - real / padded, 4) if padded else None,
        },
        "versions": {name: version(name) for name in ("lora-ft", "torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }


def _hardware(plan: Plan) -> str:
    if plan.device == "cuda":
        return f"{_processes()} x {torch.cuda.get_device_name(0)}"
    return f"{allowed_cpus()} cores of {cpu_name()}"


def _finish(task: Task, working: Path, out: Path, metrics: dict[str, Any], base: Base) -> None:
    write_json(working / METRICS, metrics)
    write_text(working / CARD, run_card(Facts(task, metrics)))
    (working / _CHOICES).unlink()
    for path in [*working.glob("checkpoint-*"), *working.glob(INITIAL)]:
        shutil.rmtree(path)
    sync_tree(working)
    replace_folder(working, out)


def _trim_log(path: Path, step: int) -> None:
    """Forget what a stopped run logged after the step it is resumed at, as those steps are done again."""
    if _rank() != 0 or not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
    write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))


def _append(path: Path, entry: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
