"""Training that starts from an existing adapter: the task takes over its ranks, layers and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ft.core.errors import UsageError
from lora_ft.core.files import sha256
from lora_ft.models.adapter_files import describe, lora_config, moved_base
from lora_ft.models.bases import find_base
from lora_ft.models.peft_adapter import PeftAdapter, adds_tokens, open_adapter
from lora_ft.runs.run import WEIGHTS, Run
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.schema import Task


def with_start_adapter(task: Task) -> Task:
    """Return the task with the section `lora` of the adapter that it starts from. Other tasks are returned unchanged.

    Raises:
        UsageError: The adapter is not supported, or has settings that a task cannot express.
    """
    if task.lora.start_from is None:
        return task
    if task.method != "lora":
        raise UsageError(
            f"lora.start_from is supported for method lora only (got {task.method})",
            "merge the adapter, and name the checkpoint as base",
        )
    source = _source(task)
    config = lora_config(source.adapter)
    if config.modules_to_save:
        raise UsageError(
            f"{source.folder} has modules_to_save, which a task does not support "
            f"(got {', '.join(config.modules_to_save)})",
            "merge it, and train a new adapter on the checkpoint",
        )
    if start := moved_base(vars(config)):
        raise UsageError(
            f"{source.folder} was trained on a base that init_lora_weights {start} changed",
            "merge it, and train a new adapter on the checkpoint",
        )
    if isinstance(source, PeftAdapter) and source.has_tokenizer and adds_tokens(source, find_base(task.base)):
        raise UsageError(
            f"{source.folder} has more tokens than the base {task.base}",
            "merge it, and train a new adapter on the checkpoint",
        )
    tokens = config.trainable_token_indices or []
    indices = {i for each in tokens.values() for i in each} if isinstance(tokens, dict) else set(tokens)
    source_lora = source.task.lora if source.task else None
    values: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": task.lora.lora_dropout,
        "target_modules": _targets(
            source.adapter,
            config.target_modules,
            whole=not (config.exclude_modules or config.layers_to_transform is not None),
        ),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "rank_pattern": config.rank_pattern or {},
        "alpha_pattern": config.alpha_pattern or {},
        "trainable_token_indices": source_lora.trainable_token_indices if source_lora else sorted(indices),
        "new_tokens": source_lora.new_tokens if source_lora else [],
        "loraplus_lr_ratio": task.lora.loraplus_lr_ratio,
        "quantization": task.lora.quantization,
        "start_from": task.lora.start_from,
    }
    try:
        lora = Lora.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{source.folder} has a setting that a task does not support: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})",
            "merge it, and train a new adapter on the checkpoint",
        ) from error
    return task.model_copy(update={"lora": lora})


def start_folder(task: Task) -> Path | None:
    """Return the PEFT folder of the adapter that a task starts from, or None."""
    return None if task.lora.start_from is None else _source(task).adapter


def start_record(task: Task) -> dict[str, Any]:
    """Return a run's metrics about the adapter that it started from. Empty for a new adapter."""
    folder = start_folder(task)
    if folder is None:
        return {}
    return {"start_from": {"adapter": task.lora.start_from, "weights_sha256": sha256(folder / WEIGHTS)}}


def _source(task: Task) -> Run | PeftAdapter:
    source = open_adapter(task.lora.start_from or "")
    if source.task is not None and source.task.method != "lora":
        raise UsageError(
            f"lora.start_from is a run of method {source.task.method}, which has no adapter (got {source.folder})",
            "set base to its folder checkpoint/ instead",
        )
    return source


def _targets(folder: Path, targets: Any, *, whole: bool) -> str | list[str]:
    """Return target layers as the config lists them, or by their full names if it excludes some layers."""
    if whole and (targets == "all-linear" or isinstance(targets, list | set)):
        return targets if isinstance(targets, str) else sorted(targets)
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in describe(folder)}
    return sorted(name for name in names if name)
