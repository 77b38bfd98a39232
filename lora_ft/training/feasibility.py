"""Checks that a task can be trained and scored with this machine, rows and base, for `validate` and `train`.

A valid task can fail hours later, when the first evaluation needs a missing package or word list. So everything that
training and scoring need is checked first, in one place. Both jobs refuse the same tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.splits import Splits
from lora_ft.evaluation.metrics import require
from lora_ft.models.adapters import check_tensors, sketch
from lora_ft.models.start_from import start_folder
from lora_ft.tasks.faults import Fault, shown
from lora_ft.tasks.schema import Task
from lora_ft.training.plan import training_device

NO_VALIDATION = (
    "no validation rows: the last state is kept, not the best, and train.metric_for_best_model is not used "
    "(data.validation or data.split)"
)
_LEAST_POLYNOMIAL = 1e-7  # final learning rate of transformers' polynomial schedule
_EVA_RHO = 2.0  # peft's default: EVA computes rho * r components of a layer's inputs


def obstacles(task: Task, config: dict[str, Any], splits: Splits) -> list[Fault]:
    """Return the faults that prevent a task from being trained and scored here.

    Args:
        task: Task to train.
        config: Content of the base's config.json.
        splits: Rows of the task.
    """
    train = task.train
    found = [
        Fault("train.report_to", name, f"the package {name} is not installed; pip install {name}, or remove it")
        for name in train.report_to
        if find_spec(name) is None
    ]
    if train.early_stopping_patience and not splits.validation:
        found.append(
            Fault(
                "train.early_stopping_patience",
                train.early_stopping_patience,
                "there are no validation rows to stop by; add data.validation or data.split, or remove it",
            )
        )
    if train.lr_scheduler_type == "polynomial" and train.learning_rate <= _LEAST_POLYNOMIAL:
        found.append(
            Fault("train.learning_rate", train.learning_rate, "polynomial ends at 1e-07; give more, or use linear")
        )
    if train.compile == "on" and training_device() == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        found.append(Fault("train.compile", "on", "there is no C++ compiler here; install g++, or set off"))
    for key, name in _metrics(task, bool(splits.validation)):
        schema = key == "evaluate.metrics" and name == "structured"
        key, value = ("evaluate.json_schema", task.evaluate.json_schema) if schema else (key, name)
        found += _fault(key, value, lambda name=name: require([name], task.evaluate))  # type: ignore[misc]
    if task.method == "lora":
        found += _fault("lora.r", task.lora.r, lambda: _check_ranks(task, config))
        found += _fault("lora.start_from", task.lora.start_from, lambda: _check_start(task, config))
    return found


def require_feasible(task: Task, config: dict[str, Any], splits: Splits) -> None:
    """Raise UsageError with the first fault that `obstacles` returns for the same arguments."""
    for fault in obstacles(task, config, splits):
        raise UsageError(f"task '{task.name}': {fault}")


def _metrics(task: Task, validated: bool) -> Iterator[tuple[str, str]]:
    """Yield (key, metric) for every metric that the task uses; the key is the setting that names it."""
    yield from (("evaluate.metrics", name) for name in task.metrics)
    if task.evaluate.metric not in task.metrics:
        yield "evaluate.metric", task.evaluate.metric
    chooses = task.train.metric_for_best_model
    if validated and chooses != "loss" and chooses not in (*task.metrics, task.evaluate.metric):
        yield "train.metric_for_best_model", chooses


def _fault(key: str, value: Any, check: Callable[[], None]) -> list[Fault]:
    try:
        check()
    except LoraFtError as error:
        return [Fault(key, value, str(error))]
    return []


def _check_start(task: Task, config: dict[str, Any]) -> None:
    """Raise UsageError or LoraFtError if the adapter in lora.start_from does not fit the base."""
    if (folder := start_folder(task)) is not None:
        check_tensors(sketch(config, task.lora), folder)


def _check_ranks(task: Task, config: dict[str, Any]) -> None:
    """Raise UsageError if a layer has too few components for an initialization from its weights or inputs."""
    lora = task.lora
    if not lora.starts_elsewhere:
        return
    eva = lora.init_lora_weights == "eva"
    for name, layer in sketch(config, lora).named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        rank = layer.r["default"]
        needed, most = (round(rank * _EVA_RHO), layer.in_features) if eva else (rank, min(layer.weight.shape))
        if needed > most:
            raise UsageError(
                f"init_lora_weights {shown(lora.init_lora_weights)} needs {needed} components of "
                f"{name.removeprefix('base_model.model.')}, which has {most}",
                "lower lora.r, or use another init_lora_weights",
            )
