"""Create the weights that a run trains (an adapter on its base, or all of the base), and write them when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lora_ft.models.adapters import add_adapter, load_tensors, name_base
from lora_ft.models.bases import Base, load_model
from lora_ft.models.checkpoints import mark_untied, save_checkpoint
from lora_ft.models.initialization import INITIAL, load_start, save_difference, start_from_rows
from lora_ft.models.quantization import load_quantized
from lora_ft.models.start_from import start_folder
from lora_ft.runs.run import ADAPTER, CARD, CHECKPOINT, CONFIG
from lora_ft.tasks.schema import Task
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData


def open_weights(data: PreparedData, plan: Plan, start: Path) -> torch.nn.Module:
    """Return the base with an adapter on it, or with `method: full` the base with all weights trainable.

    Args:
        data: Task, base, tokenizer and rows.
        plan: Plan of the run.
        start: Folder in which an unfinished run keeps the initial weights of its adapter; may be missing.

    Raises:
        UsageError: The task's `lora` does not fit the base or the rows.
    """
    task, base, lora = data.task, data.base, data.task.lora
    set_seed(task.train.seed)
    if lora.quantization:
        device = int(os.environ.get("LOCAL_RANK", "0"))
        model = load_quantized(base.folder, lora.quantization, dropout=task.base_dropout, device=device)
    else:
        model = open_base(task, base, plan.device)
    # Set it on the base itself: peft's encoder-decoder ignores the Trainer's configuration, and stops at 20 tokens.
    model.generation_config.max_new_tokens = task.max_new_tokens
    if task.method == "full":
        mark_untied(model)
        return model
    if (start / CONFIG).is_file():
        adapted = load_start(model, start, lora)
    else:
        adapted = fresh_adapter(model, data, plan.device)
        if source := start_folder(task):
            load_tensors(adapted, source)
    if lora.keeps_start:
        set_seed(task.train.seed)  # loading initial weights draws fewer random numbers than computing them
    if task.train.gradient_checkpointing:
        adapted.enable_input_require_grads()  # otherwise no gradient reaches layers after a frozen embedding (peft#80)
    return adapted


def open_base(task: Task, base: Base, device: str) -> Any:
    """Load a task's base for training, without quantization."""
    # Eager matrix products: on CPUs they compile to faster code than the fused operator (9.9 to 7.8 samples/s).
    attention = "eager" if device == "cpu" else None
    return load_model(base.folder, dropout=task.base_dropout, attention=attention)


def fresh_adapter(model: Any, data: PreparedData, device: str) -> Any:
    """Add a task's adapter, with its initial weights, to a model of its base.

    Args:
        model: Base model without adapters.
        data: Task, base, tokenizer, and the rows that EVA computes initial weights from.
        device: Device on which EVA runs: "cpu", "cuda" or "mps".
    """
    task = data.task
    set_seed(task.train.seed)  # independent of earlier draws
    adapted = add_adapter(model, task.lora, data.base, data.tokenizer.ids(task.lora.new_tokens))
    if task.lora.init_lora_weights == "eva":
        start_from_rows(adapted, data.rows, task.train.seed, device)
    return adapted


def save_weights(data: PreparedData, model: Any, folder: Path) -> None:
    """Write the trained weights into the folder of their run."""
    task, base = data.task, data.base
    extended = data.tokenizer if task.lora.new_tokens else None
    if task.method == "full":
        save_checkpoint(model, base.folder, folder / CHECKPOINT, extended)
        return
    if task.lora.moves_base:
        save_difference(model, folder / ADAPTER, folder / INITIAL)
    else:
        model.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / CARD).unlink()  # peft's model card names a local folder
    name_base(folder / ADAPTER, base)
    if extended is not None:
        extended.save(folder / ADAPTER / "tokenizer.json")
