"""The teacher of a training: a frozen model whose next-token probabilities are a second target."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ft.core.errors import UsageError
from lora_ft.core.tokenizer import IGNORED, Tokenizer
from lora_ft.export.runtime.manifest import is_bundle
from lora_ft.models.bases import find_base, load_model, load_tokenizer
from lora_ft.models.merging import merge_in_memory
from lora_ft.models.peft_adapter import PeftAdapter, base_of, holds_adapter, open_adapter
from lora_ft.tasks.schema import Task
from lora_ft.tasks.train import Distill
from lora_ft.training.cross_entropy import SummedDistillation, by_token
from lora_ft.training.packed_stack import PackedStacks
from lora_ft.training.plan import Plan


@dataclass
class Teacher:
    """A frozen model that reads each batch before the student does.

    Attributes:
        model: The model, without dropout. Its logits have the form of the student's.
        settings: Section `train.distill` of the task.
    """

    model: torch.nn.Module
    settings: Distill
    _logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @torch.no_grad()
    def read(self, inputs: dict[str, Tensor]) -> None:
        """Compute the logits of a batch, for the `loss` that follows."""
        self._logits = self.model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}).logits

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of the batch, divided by the number of tokens in the whole step, as `token_loss` does.

        Args:
            outputs: Outputs of the student, with logits [rows, t, vocabulary], or packed ones [tokens, vocabulary].
            labels: Target tokens [rows, t]; `IGNORED` marks padding.
            num_items_in_batch: Number of tokens in the whole step. None counts those of this batch.
        """
        logits, targets = by_token(outputs.logits, labels)
        teacher, self._logits = self._logits.flatten(0, -2), torch.empty(0)
        total: Tensor = SummedDistillation.apply(
            logits, teacher, targets, self.settings.alpha, self.settings.temperature
        )
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def open_teacher(settings: Distill, plan: Plan) -> Teacher:
    """Load the teacher of a plan's training, on its device, in its number format.

    Raises:
        UsageError, LoraFtError: The teacher does not exist, or is damaged.
    """
    name = settings.teacher
    model: Any = (
        merge_in_memory(open_adapter(name), dropout=0.0).model
        if holds_adapter(Path(name))
        else load_model(find_base(name).folder, dropout=0.0)
    ).requires_grad_(False)
    if plan.packed:
        PackedStacks(model.train())  # in training mode rows are packed, and there is no dropout
    elif plan.precision.is_bf16:
        model = model.to(torch.bfloat16)
    return Teacher(model.to(plan.device), settings)


def check_teacher(task: Task, name: str) -> None:
    """Raise UsageError or LoraFtError if a model cannot teach the base of a task.

    Args:
        task: Task to train.
        name: Run, adapter, checkpoint or base.
    """
    base = find_base(task.base)
    rows, tokenizer = _vocabulary(name)
    student = load_tokenizer(base.folder, new_tokens=task.lora.new_tokens)
    if rows != base.config["vocab_size"] or _tokens(tokenizer) != _tokens(student):
        raise UsageError(
            f"the teacher {name} has other tokens than the base {task.base} (got {rows:,} and "
            f"{base.config['vocab_size']:,})",
            "use a teacher with the same tokens, or let it write targets with `lora-ft distill`",
        )


def _vocabulary(name: str) -> tuple[int, Tokenizer]:
    """Return the number of logits and the tokenizer of a model."""
    folder = Path(name)
    if is_bundle(folder):
        raise UsageError(
            f"the teacher {name} is a bundle, which does not run in PyTorch",
            "name the run or checkpoint that it was exported from, or let it write targets with `lora-ft distill`",
        )
    if not holds_adapter(folder):
        base = find_base(name)
        return base.config["vocab_size"], load_tokenizer(base.folder)
    source = open_adapter(folder)
    if isinstance(source, PeftAdapter):
        base = base_of(source)
        return base.config["vocab_size"], source.tokenizer(base, "none")[0]
    if source.task.method == "full":
        return find_base(str(source.trained)).config["vocab_size"], load_tokenizer(source.trained)
    base = base_of(source)
    return base.config["vocab_size"], load_tokenizer(base.folder, new_tokens=source.task.lora.new_tokens)


def _tokens(tokenizer: Tokenizer) -> list[str]:
    return list(tokenizer.texts(range(tokenizer.rows)))
