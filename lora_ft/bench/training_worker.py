"""The process of one training recipe. It trains one pass for each line on stdin and replies with the pass's figures.

    python -m lora_ft.bench.training_worker RECIPE FOLDER STEPS ROUNDS SEED

FOLDER holds task.yaml. The first reply has the choices of the recipe. The first pass, the warm-up, needs no line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from lora_ft.bench.worker import end_with_parent
from lora_ft.core.errors import LoraFtError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.progress import Silent
from lora_ft.core.tokenizer import IGNORED, Tokenizer
from lora_ft.data.batching import Encoded, count_positions, encode
from lora_ft.data.splits import load_splits, require, training_examples, with_labels
from lora_ft.models.adapters import add_adapter
from lora_ft.models.bases import Base, find_base, load_model, load_tokenizer, quiet_transformers
from lora_ft.runs.run import TASK
from lora_ft.tasks.files import load_task
from lora_ft.tasks.lengths import Lengths
from lora_ft.tasks.schema import Task
from lora_ft.training.plan import Choices, make_plan
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.setup import build_trainer

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """The input of every recipe.

    Attributes:
        task: The task with the steps, seed and logging of the measurement.
        original: The task as the caller passed it.
        base, tokenizer: Of the task.
        rows: Rows of the measurement.
        all_rows: Rows of the task.
        folder: Folder for the trainer's files.
    """

    task: Task
    original: Task
    base: Base
    tokenizer: Tokenizer
    rows: list[Encoded]
    all_rows: list[Encoded]
    folder: Path


@dataclass(frozen=True)
class Choice:
    """Choices of a recipe.

    Attributes:
        precision: "fp32" or "bf16".
        compiled: True if torch.compile is used.
        base_dropout: Dropout rate inside the base.
        why: Reasons of the choices.
    """

    precision: str
    compiled: bool
    base_dropout: float
    why: list[str]


def usual(work: Work) -> tuple[Seq2SeqTrainer, Choice]:
    """Build the trainer of most tutorials, in which every row is padded to the maximum length before training."""
    rows = [_padded(row, work.task.lengths) for row in work.rows]
    return _vanilla(work, rows, lambda model: default_data_collator)


def dynamic(work: Work) -> tuple[Seq2SeqTrainer, Choice]:
    """Build the trainer of better tutorials, in which a batch is padded to its longest row."""
    file = work.folder / "tokenizer.json"
    work.tokenizer.save(file)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>")
    rows: list[dict[str, list[int]]] = [
        {"input_ids": row.input_ids, "attention_mask": [1] * len(row.input_ids), "labels": row.labels}
        for row in work.rows
    ]
    return _vanilla(work, rows, lambda model: DataCollatorForSeq2Seq(tokenizer, model=model))


def ours(work: Work) -> tuple[Seq2SeqTrainer, Choice]:
    """Build the trainer of `lora-ft train`, with its choices for all of the task's rows and steps."""
    full_plan = make_plan(work.original, work.base.config, work.all_rows)
    plan = make_plan(work.task, work.base.config, work.rows, started=Choices(full_plan.precision, full_plan.compile))
    data = PreparedData.of_rows(work.task, work.base, work.tokenizer, work.rows)
    trainer, _, _ = build_trainer(data, plan, RunFolder(work.folder, work.folder), Silent())
    why = [
        f"precision {full_plan.precision.name}: {full_plan.precision.reason}",
        f"compile {'on' if full_plan.compile else 'off'}: {full_plan.compile_reason}",
    ]
    return trainer, Choice(full_plan.precision.name, full_plan.compile, trainer.model.config.dropout_rate, why)


RECIPES: dict[str, Callable[[Work], tuple[Seq2SeqTrainer, Choice]]] = {
    "usual": usual,
    "dynamic": dynamic,
    "ours": ours,
}


def _padded(row: Encoded, lengths: Lengths) -> dict[str, list[int]]:
    source, target = lengths.source - len(row.input_ids), lengths.target - len(row.labels)
    return {
        "input_ids": row.input_ids + [0] * source,
        "attention_mask": [1] * len(row.input_ids) + [0] * source,
        "labels": row.labels + [IGNORED] * target,
    }


def _vanilla(
    work: Work, rows: list[dict[str, list[int]]], collator: Callable[[Any], Collate]
) -> tuple[Seq2SeqTrainer, Choice]:
    """Build transformers' trainer in fp32 on the unchanged base, with the task's adapter, optimizer and batch size."""
    train = work.task.train
    assert train.max_steps is not None  # `_shortened` sets it
    set_seed(train.seed)
    model = load_model(work.base.folder)
    adapted = add_adapter(model, work.task.lora, work.base) if work.task.method == "lora" else model
    if train.gradient_checkpointing:
        adapted.enable_input_require_grads()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work.folder),
        max_steps=train.max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        gradient_checkpointing=train.gradient_checkpointing,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=round(train.warmup_ratio * train.max_steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optim,
        seed=train.seed,
        logging_steps=train.logging_steps,
        save_strategy="no",
        report_to=[],
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(model=adapted, args=arguments, train_dataset=rows, data_collator=collator(adapted))
    return trainer, Choice("fp32", False, model.config.dropout_rate, [])


class Counter:
    """A collator that counts its rows and tokens.

    Attributes:
        samples: Number of rows.
        real, positions: Number of tokens, and of positions including padding; source and target.
    """

    def __init__(self, collate: Collate) -> None:
        self._collate = collate
        self.samples = self.real = self.positions = 0

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self._collate(rows)
        real, positions = count_positions(batch)
        self.samples, self.real, self.positions = self.samples + len(rows), self.real + real, self.positions + positions
        return batch

    def take(self) -> dict[str, int]:
        """Return the counts since the last call. They are exact, since no batch is fetched before its pass."""
        counts = {"samples": self.samples, "real": self.real, "positions": self.positions}
        self.samples = self.real = self.positions = 0
        return counts


class Turns(TrainerCallback):
    """A callback that pauses the trainer after each pass, replies with the figures, and waits for a line.

    It pauses when the trainer logs the loss, which is right after the last step of a pass.
    """

    def __init__(self, steps: int, counter: Counter, replies: TextIO) -> None:
        self._steps, self._counter, self._replies = steps, counter, replies
        self._began = self._seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self._steps == 0:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self._seconds = time.perf_counter() - self._began

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        figures = {"seconds": self._seconds, "loss": logs["loss"], **self._counter.take(), **_peaks()}
        print(json.dumps(figures), file=self._replies)
        if not sys.stdin.readline():
            raise SystemExit(0)  # the parent has closed the pipe
        self._began = time.perf_counter()


def _peaks() -> dict[str, float | None]:
    """Return the peak resident memory, if the system reports it, and the peak GPU memory, in megabytes."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    resident = next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return {"memory": resident, "gpu_memory": gpu}


def _shortened(task: Task, steps: int, rounds: int, seed: int) -> Task:
    """Return the task with the measurement's steps and seed. It logs once per pass and saves nothing."""
    total = steps * (rounds + 1)
    changes = {"max_steps": total, "seed": seed, "logging_steps": steps, "report_to": [], "eval_every": total}
    return task.model_copy(update={"train": task.train.model_copy(update=changes)})


def main(recipe: str, folder: str, steps: int, rounds: int, seed: int) -> None:
    """Train until the parent closes the pipe."""
    end_with_parent()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the trainer's own output must not mix with replies
    torch.set_num_threads(allowed_cpus())  # torch's default ignores limits on the process's cores
    original = with_labels(load_task(Path(folder) / TASK))
    task = _shortened(original, steps, rounds, seed)
    base = find_base(task.base)
    tokenizer = load_tokenizer(base.folder, task.codec)
    splits = load_splits(task, ["train"])
    require(splits, "train", task)
    rows = encode(training_examples(task, splits), tokenizer, task.lengths, "train")
    batch = task.train.per_device_train_batch_size * task.train.gradient_accumulation_steps
    work = Work(task, original, base, tokenizer, rows[: steps * batch], rows, Path(folder))
    with quiet_transformers():
        trainer, choice = RECIPES[recipe](work)
        trainer.data_collator = counter = Counter(trainer.data_collator)
        trainer.add_callback(Turns(steps, counter, replies))
        print(json.dumps(asdict(choice)), file=replies)
        trainer.train()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    except LoraFtError as error:
        raise SystemExit(str(error)) from error
