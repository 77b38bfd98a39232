"""Checks for misleading scores: leakage, truncation, empty answers. Each check returns a list of warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_ft.core.errors import LoraFtError
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.near_duplicates import near_duplicates
from lora_ft.data.sentences import split_sentences
from lora_ft.data.splits import Example, load_splits
from lora_ft.data.words import dropped_share, is_unicode
from lora_ft.models.backends import Answer
from lora_ft.tasks.schema import SplitName, Task

_NEGLIGIBLE = 0.01  # smaller shares do not change a published score
_MANY_CUT = 0.05


Overlap = Literal["same", "near", "none"]


@dataclass(frozen=True)
class RowChecks:
    """What is known of rows before they are answered.

    Attributes:
        warnings: Reasons why their scores may mislead.
        overlap: [rows] whether a row's prompt is also a training prompt, nearly equals one, or neither; empty if this
            was not checked.
    """

    warnings: list[str]
    overlap: list[Overlap] = field(default_factory=list)


def check_rows(task: Task, split: SplitName, examples: Sequence[Example], *, may_be_selected: bool) -> RowChecks:
    """Check the rows to score.

    Args:
        task: Task of the rows.
        split: Split of the rows.
        examples: Rows to score.
        may_be_selected: Whether the task's validation rows may have selected the model among checkpoints.
    """
    if split == "train":
        return RowChecks(["these are the training rows; their scores do not predict scores on new rows"])
    checks = RowChecks([])
    if task.data.train is not None:
        try:
            checks = seen_in_training(task, split, examples, load_splits(task, ["train"]).train)
        except LoraFtError as error:
            checks = RowChecks([f"the training rows are missing, so overlap was not checked ({error.message})"])
    if may_be_selected:
        checks.warnings.extend(_selection_warnings(task, split, examples))
    return checks


def _selection_warnings(task: Task, split: SplitName, examples: Sequence[Example]) -> list[str]:
    if split == "validation":
        return ["the checkpoint was selected on these validation rows; scores are inflated"]
    try:
        return used_for_selection(split, examples, load_splits(task, ["validation"]).validation)
    except LoraFtError:
        return ["the validation rows are missing, so overlap with them was not checked"]


def answer_warnings(
    task: Task, examples: Sequence[Example], answers: Sequence[Answer], tokenizer: Tokenizer
) -> list[str]:
    """Return warnings about answers and references."""
    texts = [answer.text for answer in answers]
    references = [text for example in examples for text in example.references]
    return [
        *long_references(task, references, tokenizer),
        *cut_prompts(task, answers),
        *cut_answers(task, answers),
        *empty_answers(texts),
        *same_answers(texts),
        *unsplit_sentences(task, [*texts, *references]),
        *dropped_letters(task, [*texts, *references]),
    ]


def ungraded_answers(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a warning if a judge did not grade all answers, from the records of the scores."""
    record = records.get("judge", {})
    refused, unreadable, graded = (record.get(key, 0) for key in ("refused", "unreadable", "graded"))
    if not refused + unreadable:
        return []
    return [
        f"the judge graded {graded:,} of {graded + refused + unreadable:,} answers "
        f"({refused:,} refused, {unreadable:,} unreadable); the others are left out of its mean"
    ]


def seen_in_training(task: Task, split: str, examples: Sequence[Example], train: Sequence[Example]) -> RowChecks:
    """Find rows that equal or nearly equal training rows. The template, which all rows share, is ignored."""
    prompts, prompt = {example.prompt for example in train}, Prompt(task.prompt)
    new = [i for i, example in enumerate(examples) if example.prompt not in prompts]
    near = near_duplicates([_text(examples[i], prompt) for i in new], (_text(example, prompt) for example in train))
    warnings = []
    if same := len(examples) - len(new):
        warnings.append(f"{same:,} {split} prompts are also training prompts; scores are inflated")
    if near:
        first = min(near)
        warnings.append(
            f"{len(near):,} {split} rows nearly equal training rows, such as row {new[first] + 1} and training row "
            f"{near[first] + 1}; scores are inflated"
        )
    overlap: list[Overlap] = ["same"] * len(examples)
    for at, i in enumerate(new):
        overlap[i] = "near" if at in near else "none"
    return RowChecks(warnings, overlap)


def used_for_selection(split: str, examples: Sequence[Example], validation: Sequence[Example]) -> list[str]:
    """Warn about rows that selected the checkpoint (train.metric_for_best_model)."""
    prompts = {example.prompt for example in validation}
    count = sum(example.prompt in prompts for example in examples)
    if not count:
        return []
    return [f"{count:,} {split} prompts are also validation prompts, which selected the checkpoint"]


def long_references(task: Task, references: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Warn about references that are longer than any answer can be."""
    limit = task.max_new_tokens
    share = sum(len(tokens) > limit for tokens in tokenizer.encode_targets(references)) / len(references)
    cut = "; training cut its targets too (lengths.long_targets)" if task.lengths.long_targets == "cut" else ""
    if share < _NEGLIGIBLE:
        return []
    return [f"{share:.0%} of the references are longer than the answer limit of {limit} tokens{cut}"]


def cut_answers(task: Task, answers: Sequence[Answer]) -> list[str]:
    """Warn about answers that ended at the length limit."""
    share = sum(answer.cut for answer in answers) / len(answers)
    if share < _MANY_CUT:
        return []
    return [f"{share:.0%} of the answers were cut at {task.max_new_tokens} tokens (generate.max_new_tokens)"]


def cut_prompts(task: Task, answers: Sequence[Answer]) -> list[str]:
    """Warn about prompts that were cut."""
    count = sum(answer.source_cut for answer in answers)
    limit = task.lengths.source
    return [f"{count:,} of {len(answers):,} prompts were cut at {limit} tokens (lengths.source)"] if count else []


def empty_answers(texts: Sequence[str]) -> list[str]:
    """Warn about empty answers."""
    count = sum(not text.strip() for text in texts)
    return [f"{count:,} of {len(texts):,} answers are empty"] if count else []


def same_answers(texts: Sequence[str]) -> list[str]:
    """Warn if all answers are the same."""
    return ["all answers are the same text"] if len(texts) > 1 and len(set(texts)) == 1 else []


def unsplit_sentences(task: Task, texts: Sequence[str]) -> list[str]:
    """Warn if rougeLsum equals rougeL because no text has several sentences."""
    if task.labels or "rouge" not in task.evaluate.metrics or any(len(split_sentences(text)) > 1 for text in texts):
        return []
    return ["no text has more than one sentence, so rougeLsum equals rougeL"]


def dropped_letters(task: Task, texts: Sequence[str]) -> list[str]:
    """Warn about letters and digits that ROUGE ignores."""
    if is_unicode(task.evaluate) or not any(name.startswith("rouge") for name in task.evaluate.metrics):
        return []
    share = dropped_share(texts)
    if share <= _NEGLIGIBLE:
        return []
    return [f"ROUGE ignores {share:.0%} of the letters (not a to z); set evaluate.language or evaluate.rouge_tokenizer"]


def _text(example: Example, prompt: Prompt) -> str:
    return "\n".join(prompt.texts(example.row))
