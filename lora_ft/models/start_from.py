"""Training that starts from an existing adapter: the task adopts its ranks and layers, and starts from its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ft.core.errors import UsageError
from lora_ft.core.files import sha256
from lora_ft.models.adapter_files import describe, lora_config
from lora_ft.models.peft_adapter import PeftAdapter, open_adapter
from lora_ft.runs.run import WEIGHTS, Run
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.schema import Task


def adopted(task: Task) -> Task:
    """Return a task whose section `lora` matches the adapter that it starts from, or any other task unchanged.

    Raises:
        UsageError: The adapter is not supported, or has parts that a task cannot describe.
    """
    if task.lora.start_from is None:
        return task
    if task.method != "lora":
        raise UsageError("lora.start_from is for method lora, and every weight is trained", "merge the adapter first")
    source = _source(task)
    config = lora_config(source.adapter)
    if config.modules_to_save:
        raise UsageError(
            f"{source.folder} trains modules whole (modules_to_save {', '.join(config.modules_to_save)}), and a task "
            "trains LoRA only",
            "merge it, and train a new adapter on the checkpoint",
        )
    tokens = config.trainable_token_indices or []
    indices = {i for each in tokens.values() for i in each} if isinstance(tokens, dict) else set(tokens)
    own = source.task.lora if source.task else None
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
        "trainable_token_indices": own.trainable_token_indices if own else sorted(indices),
        "new_tokens": own.new_tokens if own else [],
        "loraplus_lr_ratio": task.lora.loraplus_lr_ratio,
        "quantization": task.lora.quantization,
        "start_from": task.lora.start_from,
    }
    try:
        lora = Lora.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{source.folder} cannot be trained further: {'.'.join(map(str, first['loc']))}: {first['msg']} "
            f"(got {first['input']!r})",
            "merge it, and train a new adapter on the checkpoint",
        ) from error
    return task.model_copy(update={"lora": lora})


def start_folder(task: Task) -> Path | None:
    """Return the PEFT folder of the adapter that a task starts from, or None."""
    return None if task.lora.start_from is None else _source(task).adapter


def start_record(task: Task) -> dict[str, Any]:
    """Return the entry of a run's metrics about the adapter that it started from; empty for a new adapter."""
    folder = start_folder(task)
    if folder is None:
        return {}
    return {"start_from": {"adapter": task.lora.start_from, "weights_sha256": sha256(folder / WEIGHTS)}}


def _source(task: Task) -> Run | PeftAdapter:
    source = open_adapter(task.lora.start_from or "")
    if source.task is not None and source.task.method != "lora":
        raise UsageError(f"the run {source.folder} has all weights of its own", "name its checkpoint/ as base")
    return source


def _targets(folder: Path, targets: Any, *, whole: bool) -> str | list[str]:
    """Return layers by the ends of their names if the config lists them so, or else by their full names."""
    if whole and (targets == "all-linear" or isinstance(targets, list | set)):
        return targets if isinstance(targets, str) else sorted(targets)
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in describe(folder)}
    return sorted(name for name in names if name)
