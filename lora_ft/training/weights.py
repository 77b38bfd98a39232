"""What a run trains: an adapter on its base, or the whole of it. Made ready, and written when training is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.batching import Encoded
from lora_ft.models.adapters import add_adapter, load_tensors, name_base
from lora_ft.models.bases import Base, load_model
from lora_ft.models.checkpoints import save_checkpoint, tell_ties
from lora_ft.models.initialization import INITIAL, load_start, save_difference, start_from_rows
from lora_ft.models.quantization import load_quantized
from lora_ft.models.start_from import start_folder
from lora_ft.runs.run import ADAPTER, CARD, CHECKPOINT, CONFIG
from lora_ft.tasks.schema import Task
from lora_ft.training.plan import Plan


def open_weights(
    task: Task, plan: Plan, base: Base, tokenizer: Tokenizer, rows: Sequence[Encoded], start: Path
) -> torch.nn.Module:
    """The base with an adapter on it, or all of the base to be trained.

    Args:
        task, plan, base, tokenizer, rows: as of `lora_ft.train.build_trainer`.
        start: where an unfinished run keeps how its adapter began.

    Raises:
        UsageError: `lora` asks for what the base or the rows have not.
    """
    lora = task.lora
    set_seed(task.train.seed)
    if lora.quantization:
        device = int(os.environ.get("LOCAL_RANK", "0"))
        model = load_quantized(base.folder, lora.quantization, dropout=task.base_dropout, device=device)
    else:
        model = open_base(task, base, plan.device)
    # On the base itself: peft's encoder-decoder ignores a configuration given to the Trainer, and stops at 20 tokens.
    model.generation_config.max_new_tokens = task.max_new_tokens
    if task.method == "full":
        tell_ties(model)
        return model
    if (start / CONFIG).is_file():
        adapted = load_start(model, start, lora)
    else:
        adapted = fresh_adapter(model, task, base, tokenizer.ids(lora.new_tokens), rows, plan.device)
        if source := start_folder(task):
            load_tensors(adapted, source)
    if lora.keeps_start:
        set_seed(task.train.seed)  # a start that is loaded draws fewer random numbers than one that is made
    if task.train.gradient_checkpointing:
        adapted.enable_input_require_grads()  # or no gradient reaches layers below a frozen embedding (peft#80)
    return adapted


def open_base(task: Task, base: Base, device: str) -> Any:
    """A task's base as training takes it, not quantised."""
    # As matrix products: on CPUs they compile to faster code than the fused operator (9.9 to 7.8 samples/s).
    attention = "eager" if device == "cpu" else None
    return load_model(base.folder, dropout=task.base_dropout, attention=attention)


def fresh_adapter(
    model: Any, task: Task, base: Base, new_tokens: Sequence[int], rows: Sequence[Encoded], device: str
) -> Any:
    """A task's adapter as it starts, on a model of its base; arguments as of `add_adapter` and `start_from_rows`."""
    set_seed(task.train.seed)  # whatever was drawn before
    adapted = add_adapter(model, task.lora, base, new_tokens)
    if task.lora.init_lora_weights == "eva":
        start_from_rows(adapted, rows, task.train.seed, device)
    return adapted


def save_weights(task: Task, model: Any, base: Base, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what was trained into the folder of its run."""
    extended = tokenizer if task.lora.new_tokens else None
    if task.method == "full":
        save_checkpoint(model, base.folder, folder / CHECKPOINT, extended)
        return
    if task.lora.moves_base:
        save_difference(model, folder / ADAPTER, folder / INITIAL)
    else:
        model.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / CARD).unlink()  # peft's, which names a local folder
    name_base(folder / ADAPTER, base)
    if extended is not None:
        extended.save(folder / ADAPTER / "tokenizer.json")
