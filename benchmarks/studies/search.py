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
from benchmarks.task_results import write_tasks
from lora_ft.compare import compare
from lora_ft.core.errors import LoraFtError
from lora_ft.core.plain import plain, plain_fields
from lora_ft.core.progress import Progress
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

VERSION = 1
TASK = Path(__file__).parents[1] / "tasks" / "jfleg.yaml"
RESULTS = Path(__file__).parents[1] / "results" / "search.json"
SPACE: dict[str, list[Any]] = {
    "lora.r": [4, 8, 16],
    "train.learning_rate": [2e-4, 4e-4, 7e-4, 1.2e-3, 2e-3, 3.5e-3, 6e-3, 1e-2],
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
    """Return the table of grid and search of every task, and a sentence about the difference of their winners."""
    lines, sentences = [], []
    for name, figures in results["tasks"].items():
        grid = figures["grid"]
        for way in ("grid", "search"):
            side = figures[way]
            lines.append(
                (
                    name if way == "grid" else "",
                    way,
                    f"{side['samples']:,} ({side['samples'] / grid['samples']:.2f})",
                    f"{side['seconds'] / 60:.1f} ({side['seconds'] / grid['seconds']:.2f})",
                    f"{side['cpu_seconds'] / 60:.1f} ({side['cpu_seconds'] / grid['cpu_seconds']:.2f})",
                    "; ".join(_value(key, value) for key, value in side["settings"].items()),
                    f"{side['trainable_parameters']:,}",
                    f"{figures['test_metric']} {interval(side['test'])}",
                )
            )
        sentences.append(_difference(name, figures))
    columns = ["task", "", "trained samples", "minutes", "CPU minutes", "winner", "parameters", "test score"]
    return "\n".join([table(columns, lines), "", "In parentheses: share of the grid.", *sentences])


def _difference(name: str, figures: dict[str, Any]) -> str:
    rows, difference = figures["rows"], figures["difference"]
    return (
        f"{name}: {rows['train']:,} training rows, {figures['steps']} steps, {rows['validation']} validation and "
        f"{rows['test']:,} test rows; {len(figures['grid']['runs'])} combinations. The search's winner has rank "
        f"{figures['rank_in_grid']} of the grid by validation {figures['metric']}; its test score differs by "
        f"{interval(difference['estimate'], sign='+')} (paired, p {difference['p']:.2g}). Best {figures['metric']} of "
        f"the grid by {'; by '.join(_best_by(figures, key) for key in figures['space'])}."
    )


def _best_by(figures: dict[str, Any], key: str) -> str:
    """Return a key with the best score of the grid for each of its values. The runs are sorted by score."""
    best: dict[str, float] = {}
    for run in figures["grid"]["runs"]:
        best.setdefault(_shown(run["settings"][key]), run["best_metric"])
    values = (_shown(value) for value in figures["space"][key])
    return f"{key.partition('.')[2]}: {', '.join(f'{value} {best[value]:.3g}' for value in values)}"


def _value(key: str, value: Any) -> str:
    return f"{key.partition('.')[2]} {_shown(value)}"


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _main(
    data: Path,
    task: Annotated[Path, typer.Option(help="Task file.")] = TASK,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/search-study"),
    json_file: Annotated[Path, typer.Option("--json", help="JSON file of the figures.")] = RESULTS,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the task for all trials.")] = [],  # noqa: B006
) -> None:
    """Measure both, and print the table."""
    loaded = load_task(task, [f"data.root={data}", *set_])
    with Screen() as screen:
        figures = measure(loaded, SPACE, out, screen)
    print(tables(write_tasks(json_file, VERSION, {loaded.name: figures})))


if __name__ == "__main__":
    run_command(_main)
