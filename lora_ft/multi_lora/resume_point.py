"""Last state of one adapter of a group, in the files from which transformers' Trainer resumes.

A run is therefore the same whether it was trained alone or in a group, and both can continue it. The optimizer of a
group is one matrix for all adapters. Here, each of its rows is split into the two moments of each weight, in the
parameter order of torch's optimizer.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, write_json, write_text
from lora_ft.runs.run import WEIGHTS
from lora_ft.training.run_folder import RunFolder
from lora_ft.training.trainer import Trainer

_OPTIMIZER, _SCHEDULER, _RANDOM, _STATE = "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"
_LOSS = "loss.json"
_EMBEDDING_RATE = 1e-6  # peft's default for embeddings, a parameter group without weights here


@dataclass(frozen=True)
class Pause:
    """Point at which a member leaves its group with a resume point.

    Attributes:
        step: Step after which it leaves.
        is_scored: True to add its validation scores at that step to the log. If `train.eval_every` does not ask for
            them, they change nothing else: neither the best weights nor early stopping.
    """

    step: int
    is_scored: bool = False


@dataclass(frozen=True)
class AdapterState:
    """State of one adapter.

    Attributes:
        weights, means, squares: Weights and the two moments of the optimizer, by peft's names of the weights.
        unlogged: At a pause, the sum of the losses since the last log, and the step of that log. Else None.
    """

    weights: dict[str, Tensor]
    means: dict[str, Tensor]
    squares: dict[str, Tensor]
    unlogged: tuple[float, int] | None = None


def parameter_groups(trainer: Trainer, names: list[str], ratio: float | None) -> list[tuple[list[str], dict[str, Any]]]:
    """Return the optimizer's parameter groups of training alone: names of an adapter's weights, and options.

    Args:
        trainer: Trainer of the task.
        names: Names of the weights, as in peft and in its order.
        ratio: Setting lora.loraplus_lr_ratio, or None.
    """
    decay, rate = trainer.args.weight_decay, trainer.args.learning_rate
    if not ratio:
        return [(names, {"weight_decay": decay}), ([], {"weight_decay": 0.0})]  # the second has biases and norms
    a, b = ([name for name in names if (".lora_B." in name) is is_b] for is_b in (False, True))
    return [
        (a, {"weight_decay": decay, "lr": rate}),
        ([], {"weight_decay": decay, "lr": _EMBEDDING_RATE}),
        (b, {"weight_decay": decay, "lr": rate * ratio}),
        ([], {"weight_decay": 0.0, "lr": rate * ratio}),
    ]


def write_resume_point(
    folder: Path,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    tensors: AdapterState,
    generator: torch.Generator,
) -> None:
    """Write the state into the folder of a checkpoint, next to its weights.

    Args:
        folder: Folder `checkpoint-<step>` of the run, which has the weights.
        trainer: Trainer of the task, with its state and scheduler.
        optimizer: Optimizer without moments, in the groups of `parameter_groups`.
        names: Names of the weights, in the order of the optimizer's parameters.
        tensors: Weights and moments of the adapter.
        generator: Random generator of the adapter.
    """
    state = dataclasses.replace(trainer.state)
    if state.best_global_step is not None:
        state.best_model_checkpoint = str(folder.parent / f"checkpoint-{state.best_global_step}")
    stateful = [
        callback
        for callback in [*trainer.callback_handler.callbacks, trainer.control]
        if isinstance(callback, ExportableState)
    ]
    state.stateful_callbacks = {type(callback).__name__: callback.state() for callback in stateful}
    write_text(folder / _STATE, json.dumps(dataclasses.asdict(state), default=float, indent=2, sort_keys=True) + "\n")
    if tensors.unlogged is not None:
        write_json(folder / _LOSS, dict(zip(("loss", "logged"), tensors.unlogged, strict=True)))
    step = float(state.global_step)
    # Each weight has its own step tensor: a file records which tensors share memory, and AdamW counts in place.
    moments = {
        number: {"step": torch.tensor(step), "exp_avg": tensors.means[name], "exp_avg_sq": tensors.squares[name]}
        for number, name in enumerate(names)
    }
    torch.save(optimizer.state_dict() | {"state": moments}, folder / _OPTIMIZER)
    scheduler: Any = trainer.lr_scheduler
    torch.save(scheduler.state_dict(), folder / _SCHEDULER)
    seed, device = trainer.args.seed, generator.device.type
    numbers = {"python": random.Random(seed).getstate(), "numpy": np.random.RandomState(seed).get_state()}
    torch.save(numbers | {"cpu": torch.get_rng_state(), device: generator.get_state()}, folder / _RANDOM)


def read_resume_point(run: RunFolder, names: list[str], device: str) -> tuple[dict[str, Any], AdapterState] | None:
    """Return the state for resuming an adapter: a snapshot entry, as from `MemberTrainer.export`, and its tensors.

    Args:
        run: Folder of the run. Incomplete checkpoints in it are deleted.
        names: Names of the weights, in the order of the optimizer's parameters.
        device: Device of its random generator.

    Returns:
        Snapshot entry and tensors, or None if the run has no complete checkpoint.

    Raises:
        UsageError: The run was trained in several processes.
        LoraFtError: The checkpoint is damaged.
    """
    folder = run.latest_checkpoint()
    if folder is None:
        return None
    if not (folder / _RANDOM).is_file():
        raise UsageError(
            f"the run {run.working} was trained in several processes, and a group cannot continue it",
            "train it longer alone",
        )
    try:
        state = TrainerState.load_from_json(str(folder / _STATE))
        moments = _load(folder / _OPTIMIZER)["state"]
        numbers = _load(folder / _RANDOM)
        weights = load_file(folder / WEIGHTS)
        means, squares = (
            {name: moments[number][key] for number, name in enumerate(names)} for key in ("exp_avg", "exp_avg_sq")
        )
        if any(weights[name].shape != tensor[name].shape for name in names for tensor in (means, squares)):
            raise ValueError("the shapes of its moments and weights differ")
        generator: Tensor = numbers.get(device, numbers["cpu"])
        unlogged = {"loss": 0.0, "logged": state.global_step}
        if (folder / _LOSS).is_file():
            unlogged |= read_json(folder / _LOSS)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
        raise LoraFtError(
            f"{folder} is damaged ({type(error).__name__}: {error})", "start over with --overwrite"
        ) from error
    entry = {
        "state": dataclasses.asdict(state) | {"stateful_callbacks": None},
        "random": generator.numpy().tobytes().hex(),
        **unlogged,
        "patience": _patience(state),
    }
    return entry, AdapterState(weights, means, squares)


def _patience(state: TrainerState) -> int:
    """Return the early-stopping counter of a checkpoint; 0 if a finished run is trained longer."""
    saved = (state.stateful_callbacks or {}).get("EarlyStoppingCallback") or {}
    return int((saved.get("attributes") or {}).get("early_stopping_patience_counter", 0))


def _load(path: Path) -> Mapping[Any, Any]:
    """Read a torch file without executing code that a pickle may contain."""
    from transformers.trainer import safe_globals  # since version 5 in trainer_pt_utils, too

    with safe_globals():
        content: Mapping[Any, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
