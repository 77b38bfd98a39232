"""Compare a search with the full grid of the same values: time, trained samples, and the winners' test scores.

    python -m benchmarks.studies.search DATA/jfleg_grammar [--task FILE] [--set data.limit.train=1500] [--json FILE]

The grid trains all combinations to their end, in adapter groups, and its winner has the best validation score. The
search stops most of them early, and repeats its finalists with further seeds. Test rows are used only after both have
chosen. CPU seconds do not count the time in which the process had to wait.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from lora_ft.compare import compare
from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import write_json
from lora_ft.core.plain import plain, plain_fields
from lora_ft.core.progress import Progress
from lora_ft.doctor import environment
from lora_ft.evaluate import evaluate
from lora_ft.reports.markdown import interval, table
from lora_ft.reports.screen import Screen
from lora_ft.runs.grid_results import best_run
from lora_ft.runs.run import Run
from lora_ft.search import search
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.tasks.search import with_settings
from lora_ft.train_many import train_many

TASK = Path(__file__).parents[1] / "tasks" / "jfleg.yaml"
RESULTS = Path(__file__).parents[1] / "results" / "search.json"
SPACE: dict[str, list[Any]] = {
    "lora.r": [4, 8, 16],
    "lora.target_modules": [["q", "v"], "all-linear"],
    "train.learning_rate": [3e-4, 1e-3, 3e-3, 1e-2],
}


def measure(task: Task, space: dict[str, list[Any]], out: Path, progress: Progress) -> dict[str, Any]:
    """Search the space, train its grid, and return the figures of both.

    Args:
        task: Task with validation and test rows.
        space: Lists of values by dotted key.
        out: Folder for the runs.
        progress: Receives stages and notes.
    """
    combinations = [dict(zip(space, row, strict=True)) for row in itertools.product(*space.values())]
    progress.note(f"search of {len(combinations)} combinations")
    searched, search_time = _timed(
        lambda: search(task, out / "search", space=space, trials=len(combinations), progress=progress)
    )
    progress.note(f"grid of {len(combinations)} combinations")
    tasks = [
        with_settings(task, settings).model_copy(update={"name": f"grid-{number:02}"})
        for number, settings in enumerate(combinations)
    ]
    trained, grid_time = _timed(lambda: train_many(tasks, out / "grid", progress=progress))
    best = best_run(trained.runs)
    if best is None:
        raise LoraFtError(f"no run of the grid in {out} can be compared", "change the task or its space")
    runs = {"grid": best, "search": searched.run}
    for run in runs.values():
        evaluate(str(run.folder), progress=progress)
    comparison = compare([str(run.folder) for run in runs.values()])
    first, second = comparison.contenders
    ranking = sorted(trained.runs, key=lambda run: run.metrics["best_metric"], reverse=searched.record.sign > 0)
    names = [_settings(run.task, space) for run in ranking]
    steps = {"grid": sum(run.metrics["steps"] for run in trained.runs), "search": searched.record.steps}
    times = {"grid": grid_time, "search": search_time}
    sides = {
        name: {
            **times[name],
            "steps": steps[name],
            "samples": steps[name] * run.metrics["global_batch"],
            "settings": _settings(run.task, space),
            "seed": run.task.train.seed,
            "trainable_parameters": run.metrics["trainable_parameters"],
            "best_metric": run.metrics["best_metric"],
            "test": plain(contender.scores[comparison.by]),
        }
        for (name, run), contender in zip(runs.items(), (first, second), strict=True)
    }
    return {
        "environment": environment(),
        "task": task.name,
        "rows": dict(searched.run.metrics["rows"]) | {"test": len(comparison.prompts)},
        "space": space,
        "steps": best.metrics["steps"],
        "precision": best.metrics["precision"],
        "metric": searched.record.metric,
        "test_metric": comparison.by,
        "runs_tried": searched.record.runs_tried,
        "rank_in_grid": names.index(sides["search"]["settings"]) + 1,
        "grid": sides["grid"] | {"runs": [_entry(run, space) for run in ranking]},
        "search": sides["search"] | {"finalists": [plain_fields(each) for each in searched.record.finalists]},
        "difference": plain_fields(second.differences[comparison.by]),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    began, began_cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    return result, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}


def _settings(task: Task, space: dict[str, list[Any]]) -> dict[str, Any]:
    content = task.model_dump(mode="json")
    return {key: content[section][name] for key in space for section, name in [key.split(".", 1)]}


def _entry(run: Run, space: dict[str, list[Any]]) -> dict[str, Any]:
    keys = ("trainable_parameters", "best_metric", "best_step")
    return {"settings": _settings(run.task, space)} | {key: run.metrics[key] for key in keys}


def tables(results: dict[str, Any]) -> str:
    """Return the table of grid and search, and a sentence about the difference of their winners."""
    grid, rows = results["grid"], results["rows"]
    lines = [
        (
            name,
            f"{side['samples']:,} ({side['samples'] / grid['samples']:.2f})",
            f"{side['seconds'] / 60:.1f} ({side['seconds'] / grid['seconds']:.2f})",
            f"{side['cpu_seconds'] / 60:.1f} ({side['cpu_seconds'] / grid['cpu_seconds']:.2f})",
            "; ".join(_value(key, value) for key, value in side["settings"].items()),
            f"{side['trainable_parameters']:,}",
            interval(side["test"]),
        )
        for name, side in (("grid", grid), ("search", results["search"]))
    ]
    columns = ["", "trained samples", "minutes", "CPU minutes", "winner", "parameters", results["test_metric"]]
    difference = results["difference"]
    return "\n".join(
        [
            table(columns, lines),
            "",
            f"{results['task']}: {rows['train']:,} training rows, {results['steps']} steps, {rows['validation']} "
            f"validation and {rows['test']} test rows; {len(grid['runs'])} combinations. In parentheses: share of the "
            f"grid. The search's winner has rank {results['rank_in_grid']} of the grid by validation "
            f"{results['metric']}; its test score differs by {interval(difference['estimate'], sign='+')} (paired, "
            f"p {difference['p']:.2g}).",
        ]
    )


def _value(key: str, value: Any) -> str:
    shown = ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.partition('.')[2]} {shown}"


def _main(
    data: Path,
    task: Annotated[Path, typer.Option(help="Task file.")] = TASK,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/search-study"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures.")] = RESULTS,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the task for all trials.")] = [],  # noqa: B006
) -> None:
    """Measure both, and print the table."""
    with Screen() as screen:
        figures = measure(load_task(task, [f"data.root={data}", *set_]), SPACE, out, screen)
    write_json(json_file, figures)
    print(tables(figures))


if __name__ == "__main__":
    run_command(_main)
