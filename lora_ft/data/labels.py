"""Labels of a task: the allowed answers, if they are few and known."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.tokenizer import Tokenizer

if TYPE_CHECKING:  # bundles run generation without pydantic installed
    from lora_ft.tasks.schema import Task


def label_tokens(labels: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the token ids of each label, without the closing </s>."""
    return [row[:-1] for row in tokenizer.encode_targets(labels)]


def check_labels(task: Task, tokenizer: Tokenizer) -> None:
    """Raise UsageError unless the model can write every label, with tokens that differ from every other label's.

    A label must have no <unk> among its tokens, and decoding them must return the same text. Its length must not exceed
    `lengths.target` and `generate.max_new_tokens`.
    """
    rows = label_tokens(task.known_labels, tokenizer)
    limits = {"lengths.target": task.lengths.target, "generate.max_new_tokens": task.max_new_tokens}
    by_tokens: dict[tuple[int, ...], str] = {}
    for label, row, text in zip(task.known_labels, rows, tokenizer.decode(rows), strict=True):
        if tokenizer.unknown in row:
            raise UsageError(f"the label {label!r} has characters that T5's vocabulary lacks", "spell it differently")
        if (same := by_tokens.setdefault(tuple(row), label)) != label:
            raise UsageError(f"the labels {same!r} and {label!r} have the same tokens", "rename one of the two")
        if text != label:
            raise UsageError(f"T5's tokenizer changes the label {label!r} to {text!r}", "use that spelling")
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


def normal_form(text: str) -> str:
    """Return a label without differences of blanks and encoding, which nobody sees."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
