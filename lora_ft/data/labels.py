"""Labels of a task: the allowed answers, if they are few and known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.normal_form import normal_form
from lora_ft.core.tokenizer import Tokenizer

if TYPE_CHECKING:  # bundles run generation without pydantic installed
    from lora_ft.tasks.schema import Task


def label_tokens(labels: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of each label, without the closing </s>.

    Raises:
        UsageError: The labels are not texts, or a label has <unk> among its tokens, has the tokens of another label, or
            would be decoded as another text. An answer could not be that label then.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"labels are not a list of texts (got {labels!r:.80})", "pass a list with every label")
    rows = [row[:-1] for row in tokenizer.encode_targets(labels)]
    by_tokens: dict[tuple[int, ...], str] = {}
    for label, row, text in zip(labels, rows, tokenizer.decode(rows), strict=True):
        if not row:
            raise UsageError(f"the label {label!r} is empty", "remove it")
        if tokenizer.unknown in row:
            raise UsageError(f"the label {label!r} has characters that T5's vocabulary lacks", "spell it differently")
        if (same := by_tokens.setdefault(tuple(row), label)) != label:
            raise UsageError(f"the labels {same!r} and {label!r} have the same tokens", "rename one of the two")
        if text != label:
            raise UsageError(f"T5's tokenizer changes the label {label!r} to {text!r}", "use that spelling")
    return rows


def check_labels(task: Task, tokenizer: Tokenizer) -> None:
    """Raise UsageError unless the model can write every label (`label_tokens`), within the lengths of its task."""
    limits = {"lengths.target": task.lengths.target, "generate.max_new_tokens": task.max_new_tokens}
    for label, row in zip(task.known_labels, label_tokens(task.known_labels, tokenizer), strict=True):
        for name, limit in limits.items():
            if len(row) + 1 > limit:
                raise UsageError(
                    f"the label {label!r} has {len(row) + 1} tokens, more than {name} = {limit}", f"raise {name}"
                )


def require_label(text: str, labels: Sequence[str], where: str) -> None:
    """Raise LoraFtError if a text is not one of the labels, and suggest the closest label."""
    if text.strip() in labels:
        return
    near = difflib.get_close_matches(text.strip(), labels, n=1, cutoff=0.5)
    is_same = bool(near) and normal_form(near[0]) == normal_form(text.strip())
    form = ascii if is_same else repr  # labels that look alike are shown by their codes
    several = ", ".join(map(repr, labels[:8])) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    remedy = f"did you mean {form(near[0])}?" if near else f"use one of {several}"
    raise LoraFtError(f"{where}: {form(text)} is not among the task's labels", remedy)
