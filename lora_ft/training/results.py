"""What training leaves beside the weights: the log as it goes, then metrics, the card, and a folder in its place."""

from __future__ import annotations

import json
import math
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lora_ft.core.distributed import processes, rank
from lora_ft.core.files import replace_folder, sync_tree, write_json, write_text
from lora_ft.core.hardware import allowed_cpus, cores, cpu_name
from lora_ft.data.splits import Splits
from lora_ft.models.bases import Base
from lora_ft.models.initialization import INITIAL
from lora_ft.publishing.model_card import Facts, run_card
from lora_ft.runs.run import CARD, METRICS, RESUME, Run
from lora_ft.tasks.schema import Task
from lora_ft.training import resume_points
from lora_ft.training.output_folder import run_of
from lora_ft.training.plan import Plan
from lora_ft.training.trainer import ProgressReporter, Trainer

CHOICES = "choices.json"


def measured(
    task: Task, plan: Plan, base: Base, trainer: Trainer, reporter: ProgressReporter, splits: Splits, seconds: float
) -> dict[str, Any]:
    """metrics.json of a run.

    Args:
        task, plan, base, splits: what was trained.
        trainer, reporter: that trained it.
        seconds: in all.
    """
    samples, spent = (sum(step[i] for step in reporter.steps) for i in (0, 1))
    late = reporter.steps[len(reporter.steps) // 2 :]
    real, padded = trainer.positions
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "base": {
            "name": base.name,
            "notice": base.notice,
            **{key: base.config[key] for key in ("d_model", "vocab_size", "num_layers")},
        },
        "rows": {
            "train": len(splits.train),
            "validation": len(splits.validation),
            **({"left_out": splits.left_out} if splits.left_out else {}),
        },
        "steps": trainer.state.global_step,
        "global_batch": plan.global_batch,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "precision": plan.precision.name,
        "compiled": plan.compile,
        "train_loss": _last_loss(trainer.state.log_history),
        "best_metric": trainer.state.best_metric,
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


def _last_loss(logged: list[dict[str, float]]) -> float:
    """The last one logged, or the mean of a training that was over before any was."""
    for key in ("loss", "train_loss"):
        for entry in reversed(logged):
            if key in entry:
                return entry[key]
    return math.nan


def hardware(plan: Plan) -> str:
    """What a plan was carried out on."""
    if plan.device == "cuda":
        return f"{processes()} x {torch.cuda.get_device_name(0)}"
    return cores(allowed_cpus(), cpu_name())


def finish(task: Task, working: Path, out: Path, metrics: dict[str, Any]) -> None:
    """Write metrics and card into the folder of a run whose weights are there, and put it into its place.

    Its last state is kept in the folder `resume`: of a whole model, weights and two moments, three times its size, and
    once more the best weights if they are not the last.

    Raises:
        LoraFtError: What lies at `out` was not made by lora-ft; the run stays in `working`.
    """
    write_json(working / METRICS, metrics)
    write_text(working / CARD, run_card(Facts(task, metrics)))
    (working / CHOICES).unlink(missing_ok=True)
    resume_points.keep_resume_point(working, working / RESUME, run_of(working))
    if (working / RESUME).is_dir() and (working / INITIAL).is_dir():
        shutil.copytree(working / INITIAL, working / RESUME / INITIAL)
    for path in [*working.glob("checkpoint-*"), *working.glob(INITIAL)]:
        shutil.rmtree(path)
    sync_tree(working)
    replace_folder(working, out)


def schedule_note(finished: Path, task: Task, plan: Plan) -> str:
    """Say how the learning rate of a run that is trained longer goes on."""
    done = Run(finished).metrics["steps"]
    return (
        f"the finished run did {done:,} steps; the {task.train.lr_scheduler_type} schedule now runs over "
        f"{plan.steps:,} steps, so the learning rate jumps to where that has it at step {done:,}"
    )


def trim_log(path: Path, step: int) -> None:
    """Forget what a stopped run logged after the step it is resumed at, as those steps are done again."""
    if rank() != 0 or not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
    write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a log (jsonl)."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
