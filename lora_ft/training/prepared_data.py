"""What a task is trained from, read and checked: its rows, encoded, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ft.core.progress import Progress
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded, encode
from lora_ft.data.labels import check_labels
from lora_ft.data.row_record import RowRecord
from lora_ft.data.splits import Example, Splits, load_splits, require, training_examples, with_labels
from lora_ft.models.bases import Base, load_tokenizer
from lora_ft.models.generation import check_generation, generation_notes
from lora_ft.tasks.schema import Task
from lora_ft.training.feasibility import NO_VALIDATION, require_feasible


@dataclass(frozen=True)
class PreparedData:
    """A task with what it is trained from.

    Attributes:
        task: its labels found.
        tokenizer: the base's, with the task's codec and new tokens.
        splits: examples of all splits.
        rows: the training rows, encoded.
        validation: examples to choose the best checkpoint by, the longest first; may be none.
        record: of the rows of all splits.
    """

    task: Task
    tokenizer: Tokenizer
    splits: Splits
    rows: list[Encoded]
    validation: list[Example]
    record: RowRecord


def prepare(task: Task, base: Base, progress: Progress) -> PreparedData:
    """Read a task's rows, the test rows too: a fault in them, or an overlap, is better known before training.

    Raises:
        UsageError, LoraFtError: as of `load_splits`, `check_labels`, `check_generation`, `require_feasible`, `encode`.
    """
    tokenizer = load_tokenizer(base.folder, task.codec, task.lora.new_tokens)
    task = with_labels(task)
    check_labels(task, tokenizer)
    check_generation(task, base, tokenizer)
    for note in generation_notes(base, tokenizer):
        progress.note(note)
    splits = load_splits(task)
    for warning in splits.warnings:
        progress.note(f"warning: {warning}")
    if not splits.validation:
        progress.note(f"warning: {NO_VALIDATION}")
    require(splits, "train", task)
    require_feasible(task, base.config, splits)
    rows = encode(training_examples(task, splits), tokenizer, task.lengths, "train")
    if task.data.oversample:
        progress.note(f"oversampled: {len(splits.train):,} training rows are {len(rows):,} now")
    if splits.overlap:
        progress.note(
            f"warning: {splits.overlap:,} prompts of other rows are training prompts too; scores will flatter"
        )
    validation = sorted(splits.validation, key=lambda one: -len(one.prompt))
    return PreparedData(task, tokenizer, splits, rows, validation, RowRecord.of(splits))
