"""Measurements of a run: the log during training, and metrics.json at its end."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_ft.core.distributed import processes
from lora_ft.core.hardware import allowed_cpus, cores, cpu_name, torch_threads
from lora_ft.training.plan import Plan
from lora_ft.training.prepared_data import PreparedData
from lora_ft.training.trainer import ProgressReporter, Trainer


def run_metrics(
    data: PreparedData, plan: Plan, trainer: Trainer, reporter: ProgressReporter, seconds: float
) -> dict[str, Any]:
    """Return the content of a run's metrics.json.

    Args:
        data: Task, base and training rows.
        plan: Plan of the run.
        trainer: Trainer after its last step.
        reporter: Callback that timed the trainer's steps.
        seconds: Duration of the training, in seconds.
    """
    base, splits = data.base, data.splits
    samples, spent = (sum(step[i] for step in reporter.steps) for i in (0, 1))
    late = reporter.steps[len(reporter.steps) // 2 :]
    real, padded, _ = trainer.counts
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "base": {
            "name": base.name,
            "notice": base.notice,
            **{key: base.config[key] for key in ("d_model", "vocab_size", "num_layers")},
            "num_decoder_layers": base.config.get("num_decoder_layers") or base.config["num_layers"],
        },
        "rows": {
            "train": len(splits.train),
            "validation": len(splits.validation),
            **({"left_out": splits.left_out} if splits.left_out else {}),
        },
        "lengths": {
            "prompts": _percentiles([len(row.input_ids) for row in data.rows]),
            "targets": _percentiles([len(row.labels) for row in data.rows]),
        },
        "steps": trainer.state.global_step,
        "global_batch": plan.global_batch,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "precision": plan.precision.name,
        "compiled": plan.compile,
        "train_loss": _last_loss(trainer.state.log_history),
        "best_metric": finite_score(trainer.state.best_metric),
        "best_step": trainer.state.best_global_step,
        "evaluations": [{k: v for k, v in e.items() if k == "step" or k.startswith("eval_")} for e in evaluations],
        "speed": {
            "seconds": round(seconds, 1),
            "seconds_in_steps": round(spent, 1),
            "samples_per_second": round(samples / spent, 2) if spent else None,
            "samples_per_second_second_half": round(sum(s for s, _ in late) / sum(t for _, t in late), 2)
            if late
            else None,
            "padding_share": round(1 - real / padded, 4) if padded else None,
        },
        "versions": {name: version(name) for name in ("lora-ft", "torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }


def finite_score(score: float | None) -> float | None:
    """Return the score of the best checkpoint, or None if no validation was a number: transformers keeps infinity."""
    return score if score is not None and math.isfinite(score) else None


def _percentiles(tokens: Sequence[int]) -> list[int]:
    """Return the 50th, 90th, 95th and 100th percentiles of lengths, in tokens."""
    return [int(value) for value in np.percentile(tokens, (50, 90, 95, 100), method="nearest")]


def _last_loss(logged: list[dict[str, float]]) -> float:
    """Return the last logged loss, or the mean if training ended before the first log."""
    for key in ("loss", "train_loss"):
        for entry in reversed(logged):
            if key in entry:
                return entry[key]
    return math.nan


def hardware_name(plan: Plan) -> str:
    """Return a description of the hardware that a run was trained on."""
    if plan.device == "cuda":
        return f"{processes()} x {torch.cuda.get_device_name(0)}"
    return cores(min(allowed_cpus(), processes() * torch_threads()), cpu_name())


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Append an entry to a JSON Lines log."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
