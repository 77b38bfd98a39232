"""Read and check the inputs of a training: base, tokenizer and encoded rows."""

from __future__ import annotations

from collections.abc import Sequence
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
    """A task with the inputs of its training.

    Attributes:
        task: Task, with its labels filled in.
        base: Base model.
        tokenizer: Tokenizer of the base, with the task's codec and new tokens.
        splits: Examples of all splits.
        rows: Encoded training rows.
        validation: Examples that choose the best checkpoint, longest first; may be empty.
        record: Record of the rows of all splits.
    """

    task: Task
    base: Base
    tokenizer: Tokenizer
    splits: Splits
    rows: list[Encoded]
    validation: list[Example]
    record: RowRecord

    @classmethod
    def of_rows(cls, task: Task, base: Base, tokenizer: Tokenizer, rows: Sequence[Encoded]) -> PreparedData:
        """Return prepared data with encoded training rows only, for measurements."""
        splits = Splits([], [], [])
        return cls(task, base, tokenizer, splits, list(rows), [], RowRecord.of(splits))


def prepare(task: Task, base: Base, progress: Progress) -> PreparedData:
    """Read, check and encode a task's rows.

    Test rows are read too, so that an error in them, or an overlap with training rows, is reported before training.

    Raises:
        UsageError, LoraFtError: See `load_splits`, `check_labels`, `check_generation`, `require_feasible`, `encode`.
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
        progress.note(f"oversampled from {len(splits.train):,} to {len(rows):,} training rows")
    if splits.overlap:
        progress.note(
            f"warning: {splits.overlap:,} validation or test prompts also occur in the training rows; scores will be "
            "inflated"
        )
    validation = sorted(splits.validation, key=lambda example: -len(example.prompt))
    return PreparedData(task, base, tokenizer, splits, rows, validation, RowRecord.of(splits))
