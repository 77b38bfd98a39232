"""Checks that a task can be trained and scored with this machine, rows and base, for `validate` and `train`.

A valid task can fail hours later, when the first evaluation needs a missing package or word list. Everything that
training and scoring need is therefore checked first. The checks are in one place, so that both verbs refuse the same
tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.splits import Splits
from lora_ft.evaluation.metrics import require
from lora_ft.models.adapters import check_tensors, meta_model
from lora_ft.models.start_from import start_folder
from lora_ft.tasks.error_details import ErrorDetails, shown
from lora_ft.tasks.schema import Task
from lora_ft.training.distillation import check_teacher
from lora_ft.training.plan import training_device

NO_VALIDATION = (
    "there are no validation rows, so the last checkpoint is kept instead of the best, and "
    "train.metric_for_best_model is not used; add data.validation or data.split to choose by score"
)
_LEAST_POLYNOMIAL = 1e-7  # final learning rate of transformers' polynomial schedule
_EVA_RHO = 2.0  # peft's default: EVA computes rho * r components of a layer's inputs


def obstacles(task: Task, config: dict[str, Any], splits: Splits) -> list[ErrorDetails]:
    """Return the problems that prevent a task from being trained and scored on this machine.

    Args:
        task: Task to train.
        config: Content of the base's config.json.
        splits: Rows of the task.
    """
    train = task.train
    errors = [
        ErrorDetails("train.report_to", name, f"the package {name} is not installed; pip install {name}, or remove it")
        for name in train.report_to
        if find_spec(name) is None
    ]
    if train.early_stopping_patience and not splits.validation:
        errors.append(
            ErrorDetails(
                "train.early_stopping_patience",
                train.early_stopping_patience,
                "there are no validation rows to evaluate; add data.validation or data.split, or remove it",
            )
        )
    if train.lr_scheduler_type == "polynomial" and train.learning_rate <= _LEAST_POLYNOMIAL:
        errors.append(
            ErrorDetails(
                "train.learning_rate",
                train.learning_rate,
                "polynomial ends at 1e-07; raise it, or use linear",
            )
        )
    if train.compile == "on" and training_device() == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        errors.append(ErrorDetails("train.compile", "on", "no C++ compiler is installed; install g++, or set off"))
    for key, name in _metrics(task, bool(splits.validation)):
        schema = key == "evaluate.metrics" and name == "structured"
        key, value = ("evaluate.json_schema", task.evaluate.json_schema) if schema else (key, name)
        errors += _check(key, value, lambda name=name: require([name], task.evaluate))  # type: ignore[misc]
    if train.distill is not None:
        distill = train.distill
        errors += _check("train.distill.teacher", distill.teacher, lambda: check_teacher(task, distill.teacher))
    if task.method == "lora":
        errors += _check("lora.r", task.lora.r, lambda: _check_ranks(task, config))
        errors += _check("lora.start_from", task.lora.start_from, lambda: _check_start(task, config))
    return errors


def require_feasible(task: Task, config: dict[str, Any], splits: Splits) -> None:
    """Raise UsageError with the first problem that `obstacles` returns for the same arguments."""
    for error in obstacles(task, config, splits):
        raise UsageError(f"task '{task.name}': {error}")


def _metrics(task: Task, validated: bool) -> Iterator[tuple[str, str]]:
    """Yield (key, metric) for every metric of the task; the key is the setting that names it."""
    yield from (("evaluate.metrics", name) for name in task.metrics)
    if task.evaluate.metric not in task.metrics:
        yield "evaluate.metric", task.evaluate.metric
    chooses = task.train.metric_for_best_model
    if validated and chooses != "loss" and chooses not in (*task.metrics, task.evaluate.metric):
        yield "train.metric_for_best_model", chooses


def _check(key: str, value: Any, check: Callable[[], None]) -> list[ErrorDetails]:
    try:
        check()
    except LoraFtError as error:
        return [ErrorDetails(key, value, str(error))]
    return []


def _check_start(task: Task, config: dict[str, Any]) -> None:
    """Raise UsageError or LoraFtError if the adapter in lora.start_from does not fit the base."""
    if (folder := start_folder(task)) is not None:
        check_tensors(meta_model(config, task.lora), folder)


def _check_ranks(task: Task, config: dict[str, Any]) -> None:
    """Raise UsageError if a layer has too few components for an initialization from its weights or inputs."""
    lora = task.lora
    if not lora.starts_elsewhere:
        return
    eva = lora.init_lora_weights == "eva"
    for name, layer in meta_model(config, lora).named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        rank = layer.r["default"]
        needed, most = (round(rank * _EVA_RHO), layer.in_features) if eva else (rank, min(layer.weight.shape))
        if needed > most:
            raise UsageError(
                f"init_lora_weights {shown(lora.init_lora_weights)} requires {needed} components of "
                f"{name.removeprefix('base_model.model.')}, which has {most}",
                "lower lora.r, or use another init_lora_weights",
            )
