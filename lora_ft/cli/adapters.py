"""The commands of `lora-ft adapters`: list, compare, merge and delete the adapters in a folder of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ft.cli.groups import GroupedCommands
from lora_ft.cli.options import (
    Base,
    Changed,
    Json,
    Limit,
    Metrics,
    Overwrite,
    Quiet,
    ScoredSplit,
    TaskOption,
)
from lora_ft.cli.results import show as show_result
from lora_ft.cli.results import show_json
from lora_ft.core.printable import printable
from lora_ft.core.streams import is_terminal, say

if TYPE_CHECKING:
    from lora_ft.run_registry import AdapterEntry

app = typer.Typer(
    cls=GroupedCommands,
    rich_markup_mode=None,
    help="List, compare, merge and delete adapters of runs.",
)


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the adapters of all runs in a folder.

    A star marks the best run of a grid.
    """
    from lora_ft.cli.tables import show_adapters
    from lora_ft.run_registry import list_runs

    entries = list_runs(folder)
    if as_json:
        show_json([_summary(entry) for entry in entries])
    else:
        show_adapters(entries)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run to describe.")],
    as_json: Json = False,
) -> None:
    """Show one adapter: its rows, training and scores."""
    from lora_ft.cli.tables import show_adapter
    from lora_ft.run_registry import adapter_entry

    entry = adapter_entry(run)
    if as_json:
        facts = {**_summary(entry), "metrics": entry.run.metrics, "scores": entry.run.scores}
        show_json(facts)
    else:
        show_adapter(entry)


def _summary(entry: AdapterEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "folder": entry.run.folder,
        "task": entry.run.task.name,
        "base": entry.run.task.base,
        "rank": entry.rank,
        "bytes": entry.bytes,
        "metric": entry.metric,
        "score": entry.score,
        "trained": entry.trained,
        "best": entry.best,
    }


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="FOLDER|RUN...", help="Evaluated runs; a folder stands for all its runs.")
    ],
    split: ScoredSplit = None,
    metric: Metrics = [],  # noqa: B006  (typer copies it)
    rows: Changed = 3,
    as_json: Json = False,
) -> None:
    """Compare answers of runs with those of the first."""
    from lora_ft.cli.tables import show_comparison
    from lora_ft.compare import compare as compare_answers
    from lora_ft.run_registry import list_runs
    from lora_ft.runs.run import is_run

    folders = [
        folder
        for path in runs
        for folder in ([path] if is_run(path) else [entry.run.folder for entry in list_runs(path)])
    ]
    comparison = compare_answers(
        [str(folder) for folder in folders], split=split.value if split else None, metrics=metric
    )
    show_result(comparison, lambda result: show_comparison(result, rows), as_json=as_json)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders saved by PEFT.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder to write: a run if all are runs, else an adapter.")
    ],
    method: Annotated[str, typer.Option(metavar="METHOD", help="weighted, ties or dare.")] = "weighted",
    weight: Annotated[list[float], typer.Option(help="Weight of each run, in order; repeatable. Default: equal.")] = [],  # noqa: B006
    density: Annotated[float, typer.Option(min=0.01, max=1, help="Share of weights that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the weights that dare drops.")] = 0,
    base: Base = None,
    task: TaskOption = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge several adapters into one, and score it.

    The result is scored on the validation rows of every task, next to the task's own adapter.
    """
    from lora_ft.cli.tables import show_merged
    from lora_ft.merge_adapters import merge_adapters
    from lora_ft.models.peft_adapter import open_adapter
    from lora_ft.reports.screen import Screen
    from lora_ft.tasks.files import load_task

    with Screen(quiet=quiet) as screen:
        merged = merge_adapters(
            [open_adapter(run) for run in runs],
            out,
            method=method,
            weights=weight,
            density=density,
            seed=seed,
            base=base,
            task=load_task(task) if task else None,
            limit=limit,
            overwrite=overwrite,
            progress=screen,
        )
    show_result(merged, lambda result: show_merged(result, out, method), as_json=as_json)


@app.command()
def rm(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs to delete.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> int:
    """Delete runs, after asking.

    The adapter, the log and the scores are deleted. Exit code 1 if the answer is no.
    """
    from lora_ft.core.errors import UsageError
    from lora_ft.run_registry import adapter_entry, remove_runs

    for run in runs:
        adapter_entry(run)
    if not yes:
        if not is_terminal(sys.stdin):
            raise UsageError("stdin is not a terminal, so deletion cannot be confirmed", "pass --yes")
        names = printable(", ".join(map(str, runs)))
        if not _confirmed(f"delete {names}? [y/N] "):
            say("nothing was deleted")
            return 1
    say(f"{remove_runs(runs) / 1e6:.1f} MB freed")
    return 0


def _confirmed(question: str) -> bool:
    """Return True if the user types yes; Ctrl-D is a no."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
