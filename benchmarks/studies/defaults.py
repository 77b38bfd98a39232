"""Change settings of training one at a time: validation scores on several tasks and seeds.

    python -m benchmarks.studies.defaults DATA_FOLDER [--rows 200] [--seeds 3] [--only jfleg] [--set KEY=VALUE]
        [--out FOLDER] [--json FILE]

DATA_FOLDER holds a folder for each task file of `TASKS`; recipes have rows of their own. Every seed draws its training
rows, and trains the recipe (the task with the overrides) and its variants on them, in adapter groups. A variant's score
is that of its best step. Test rows are not read. Tasks that have figures in the JSON file are not trained again.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, write_json, write_text
from lora_ft.core.progress import Progress
from lora_ft.doctor import environment
from lora_ft.reports.markdown import table
from lora_ft.reports.screen import Screen
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import AUTO, Task
from lora_ft.tasks.search import with_settings
from lora_ft.train_many import train_many

VERSION = 1
TASK_FILES = Path(__file__).parents[1] / "tasks"
RESULTS = Path(__file__).parents[1] / "results" / "defaults.json"
# Folder of the rows by task file; None for a recipe.
TASKS: dict[str, str | None] = {
    "jfleg": "jfleg_grammar",
    "e2e": "e2e_nlg",
    "banking77": "banking77",
    "text-classification": None,
}
RECIPE = "the recipe"
VARIANTS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "learning rate 5e-4": {"train.learning_rate": 5e-4},
    "learning rate 1e-3": {"train.learning_rate": 1e-3},
    "learning rate 4e-3": {"train.learning_rate": 4e-3},
}


@dataclass(frozen=True)
class Design:
    """What is compared.

    Attributes:
        data: Folder with one folder of rows for each task.
        rows: Training rows of each run.
        seeds: Number of seeds, from 1.
        overrides: Overrides of the tasks that make the recipe.
        variants: Settings of each variant by its name; `RECIPE`, the first, has none.
        files: Folder of the task files.
    """

    data: Path
    rows: int
    seeds: int
    overrides: list[str]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: VARIANTS)
    files: Path = TASK_FILES

    def recipe(self, name: str, seed: int, out: Path) -> Task:
        """Return the recipe of a task, on training rows that are drawn with the seed and written below `out`.

        Raises:
            UsageError: The task has fewer rows.
        """
        folder = TASKS[name]
        file = name if folder is None else self.files / f"{name}.yaml"
        source = ["base=offline"] if folder is None else [f"data.root={self.data / folder}"]
        rows = Path(str(load_task(file, source).data.root)) / "train.jsonl"
        lines = rows.read_text(encoding="utf-8").splitlines()
        if len(lines) < self.rows:
            raise UsageError(f"{rows} has {len(lines)} training rows, fewer than {self.rows}", "pass fewer --rows")
        drawn = out / f"{name}-{seed}.jsonl"
        write_text(drawn, "\n".join(random.Random(seed).sample(lines, self.rows)) + "\n")
        task = load_task(file, [*source, f"data.train={drawn.absolute()}", *self.overrides, f"train.seed={seed}"])
        if task.labels != AUTO:
            return task
        labels = sorted({json.loads(line)[task.data.target] for line in lines})  # few rows may lack some
        return task.model_copy(update={"labels": labels})


def train_variants(
    recipe: Task, variants: Mapping[str, Mapping[str, Any]], out: Path, progress: Progress
) -> dict[str, Run]:
    """Return the run of each variant of a recipe.

    Raises:
        LoraFtError: A variant failed.
    """
    tasks = [
        with_settings(recipe, settings).model_copy(update={"name": f"variant-{number:02}"})
        for number, settings in enumerate(variants.values())
    ]
    trained = train_many(tasks, out, overwrite=True, progress=progress)
    if trained.failed:
        raise LoraFtError(f"variants of {recipe.name} failed: {trained.failed}", "see their logs")
    return dict(zip(variants, trained.runs, strict=True))


def measure(design: Design, tasks: Sequence[str], out: Path, results: Path, progress: Progress) -> dict[str, Any]:
    """Train the variants of each task with each seed, and return the figures.

    Args:
        design: What is compared.
        tasks: Names of task files.
        out: Folder of the runs.
        results: JSON file. Tasks that it already contains are not trained again.
        progress: Receives stages and notes.

    Raises:
        UsageError: `results` has figures of other rows, seeds, overrides or variants.
        LoraFtError: A variant failed.
    """
    frame = {
        "version": VERSION,
        "rows": design.rows,
        "seeds": design.seeds,
        "overrides": design.overrides,
        "variants": dict(design.variants),
    }
    figures: dict[str, Any] = read_json(results) if results.is_file() else {**frame, "tasks": {}}
    if any(figures.get(key) != value for key, value in frame.items()):
        raise UsageError(f"{results} has figures of another recipe", "delete it, or pass another --json")
    figures["environment"] = environment()
    seeds = range(1, design.seeds + 1)
    for name in tasks:
        if name in figures["tasks"]:
            progress.note(f"{name}: skipped, already measured")
            continue
        scores: dict[str, list[float]] = {variant: [] for variant in design.variants}
        for seed in seeds:
            progress.note(f"{name}, seed {seed}")
            recipe = design.recipe(name, seed, out)
            for variant, run in train_variants(recipe, design.variants, out / f"{name}-{seed}", progress).items():
                scores[variant].append(run.metrics["best_metric"])
        figures["tasks"][name] = {"metric": recipe.train.metric_for_best_model, "scores": scores}
        write_json(results, figures)
    return figures


def tables(figures: Mapping[str, Any]) -> str:
    """Return the table of the variants' mean changes of the score, and what was compared."""
    tasks = figures["tasks"].values()
    lines = [(variant, *(_change(task["scores"], variant) for task in tasks)) for variant in figures["variants"]]
    columns = [f"{name}, {task['metric']}" for name, task in figures["tasks"].items()]
    return "\n".join(
        [
            table(["changed", *columns], lines),
            "",
            f"Validation score of the best step, mean change against {RECIPE} (in how many seeds it rose). Each seed "
            f"has {figures['rows']} training rows of its own. Recipe: {', '.join(figures['overrides'])}; else the "
            "defaults.",
        ]
    )


def _change(scores: Mapping[str, Sequence[float]], variant: str) -> str:
    changes = [new - old for new, old in zip(scores[variant], scores[RECIPE], strict=True)]
    mean = f"{statistics.mean(changes):+.1f}"
    return mean if variant == RECIPE else f"{mean} ({sum(change > 0 for change in changes)} of {len(changes)})"


def _main(
    data: Path,
    rows: Annotated[int, typer.Option(min=1, help="Training rows.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    only: Annotated[list[str], typer.Option("--only", help="Task to measure; repeatable.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/defaults"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures.")] = RESULTS,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of all tasks.")] = [],  # noqa: B006
) -> None:
    """Measure the variants, and print the table."""
    if unknown := sorted(set(only) - set(TASKS)):
        raise UsageError(f"task {unknown[0]!r} does not exist", f"choose one of {', '.join(TASKS)}")
    with Screen() as screen:
        figures = measure(Design(data, rows, seeds, set_), only or list(TASKS), out, json_file, screen)
    print(tables(figures))


if __name__ == "__main__":
    run_command(_main)
