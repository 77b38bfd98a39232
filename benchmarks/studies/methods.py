"""Compare all training methods on the same rows and steps of one task: score, time, size.

    python -m benchmarks.studies.methods DATA_FOLDER [--task FILE] [--out FOLDER] [--only dora]
        [--set train.max_steps=100]

DATA_FOLDER holds the files that the task names. Methods that have figures in the JSON file are not run again.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.core.errors import UsageError
from lora_ft.core.files import folder_size, read_json, write_json
from lora_ft.core.progress import Progress
from lora_ft.data.splits import load_splits
from lora_ft.doctor import environment
from lora_ft.evaluate import Evaluation, evaluate
from lora_ft.reports.screen import Screen
from lora_ft.reports.terminal import console, table
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train

VERSION = 1
TASK = Path(__file__).parents[1] / "tasks" / "dialogsum.yaml"
RESULTS = Path(__file__).parents[1] / "results" / "methods.json"
# Overrides of each method. Only full fine-tuning changes the learning rate.
METHODS: dict[str, tuple[str, ...]] = {
    "LoRA, tiny": ("lora={preset: tiny}",),
    "LoRA": ("lora={preset: default}",),
    "rsLoRA": ("lora={preset: default, use_rslora: true}",),
    "DoRA": ("lora={preset: default, use_dora: true}",),
    "PiSSA": ("lora={preset: default, init_lora_weights: pissa}",),
    "OLoRA": ("lora={preset: default, init_lora_weights: olora}",),
    "EVA": ("lora={preset: default, init_lora_weights: eva}",),
    "LoRA+": ("lora={preset: default, loraplus_lr_ratio: 16}",),
    "full": ("method=full", "train.learning_rate=3.0e-4"),
}
_BASE = "base"  # scored without any training


def measure(task: Path, overrides: list[str], out: Path, results: Path, only: list[str], progress: Progress) -> None:
    """Train and score each method below `out`, and write `results` after each.

    Args:
        task: Task file.
        overrides: Overrides for `load_task`, the same for all methods.
        out: Folder of the runs.
        results: JSON file. Figures of the same task that it already contains are not measured again.
        only: Names of methods; empty for all.
        progress: Receives stages and notes.

    Raises:
        UsageError: A method does not exist, or `results` has figures of another task or machine.
        LoraFtError: The task, its data or its base is unusable.
    """
    unknown = [name for name in only if name not in METHODS]
    if unknown:
        raise UsageError(f"method {unknown[0]!r} does not exist", f"choose one of {', '.join(METHODS)}")
    common = load_task(task, overrides)
    figures = _earlier_figures(common, results)
    if figures[_BASE] is None:
        figures[_BASE] = _scores(evaluate(common.base, task=common, progress=progress))
        write_json(results, figures)
    for name in only or METHODS:
        if name in figures["methods"]:
            progress.note(f"{name}: skipped, already measured")
            continue
        progress.note(name)
        figures["methods"][name] = _measured(load_task(task, [*overrides, *METHODS[name]]), out / name, progress)
        write_json(results, figures)


def _earlier_figures(task: Task, results: Path) -> dict[str, Any]:
    """Return the earlier figures, or an empty record if there are none."""
    about = task.model_dump(mode="json", exclude={"lora", "method", "data"})
    splits = load_splits(task)
    rows = {name: len(splits[name]) for name in ("train", "validation", "test")}
    frame = {"version": VERSION, "task": about, "rows": rows, "environment": environment(), _BASE: None, "methods": {}}
    if not results.is_file():
        return frame
    figures = read_json(results)
    if any(figures.get(key) != frame[key] for key in ("version", "task", "rows")):
        raise UsageError(f"{results} has figures of another task or other rows", "delete it, or pass another --json")
    if figures["environment"]["cpu"] != environment()["cpu"]:
        raise UsageError(f"{results} was measured on another processor", "delete it, or pass another --json")
    return figures


def _measured(task: Task, out: Path, progress: Progress) -> dict[str, Any]:
    run = train(task, out, overwrite=True, progress=progress)
    speed = run.metrics["speed"]
    figures = {
        "lora": None if task.method == "full" else task.lora.model_dump(mode="json"),
        "learning_rate": task.train.learning_rate,
        "trainable_parameters": run.metrics["trainable_parameters"],
        "precision": run.metrics["precision"],
        "steps": run.metrics["steps"],
        "seconds": speed["seconds"],  # training time, including evaluations and checkpoints
        "samples_per_second": speed["samples_per_second"],
        "megabytes": folder_size(run.trained) / 1e6,
        "best_step": run.metrics["best_step"],
        "scores": _scores(evaluate(str(run.folder), progress=progress)),
    }
    shutil.rmtree(out)  # the runs are large, especially the run of full fine-tuning
    return figures


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in evaluation.scores.items()}


def _main(
    data: Path,
    task: Annotated[Path, typer.Option(help="Task file.")] = TASK,
    out: Annotated[Path, typer.Option(help="Folder for the runs, which are deleted afterwards.")] = Path(
        "runs/methods"
    ),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures, read and updated.")] = RESULTS,
    only: Annotated[list[str], typer.Option("--only", help="Method to measure; repeatable.")] = [],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the task for all methods.")] = [],  # noqa: B006
) -> None:
    """Measure all methods that have no figures yet, and print a table."""
    with Screen() as screen:
        measure(task, [f"data.root={data}", *set_], out, json_file, only, screen)
    figures = read_json(json_file)
    rows = table("method", "rouge1", "rougeLsum", "trained", "MB", "samples/s", "s")
    for name, method in figures["methods"].items():
        rows.add_row(
            name,
            f"{method['scores']['rouge1']['mean']:.1f}",
            f"{method['scores']['rougeLsum']['mean']:.1f}",
            f"{method['trainable_parameters']:,}",
            f"{method['megabytes']:.1f}",
            f"{method['samples_per_second']:.2f}",
            f"{method['seconds']:.0f}",
        )
    console().print(rows)


if __name__ == "__main__":
    run_command(_main)
