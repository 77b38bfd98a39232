"""The verbs of `lora-ft adapters`: a folder of runs, looked through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli.choices import SplitChoice
from lora_ft.core.printable import printable
from lora_ft.core.streams import is_terminal, say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look through the adapters in a folder of runs.")


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Of runs.")] = Path("runs"),
) -> None:
    """List the adapters of all runs in a folder; * is the best of a grid."""
    from lora_ft.reports.terminal import console, distinct, shorten, table
    from lora_ft.run_registry import list_runs

    made = table("adapter", "base", "rank", "MB", "validation", "trained")
    found = list_runs(folder)
    names = distinct([one.name for one in found], 26)
    for one in found:
        score = "–" if one.score is None else f"{one.metric} {one.score:.2f}"
        made.add_row(
            f"{names[one.name]}{' *' if one.best else ''}",
            shorten(one.run.task.base, 14),
            f"{one.rank}",
            f"{one.bytes / 1e6:.1f}",
            score,
            f"{one.trained:%Y-%m-%d}",
        )
    console().print(made)


@app.command()
def show(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
    """Show one adapter: what it was trained on and how, and every score there is of it."""
    from lora_ft.models.adapter_files import adapter_config
    from lora_ft.publishing.model_card import figures
    from lora_ft.reports.terminal import show_pairs
    from lora_ft.run_registry import entry

    one = entry(run)
    task, metrics = one.run.task, one.run.metrics
    layers = adapter_config(one.run.adapter)["target_modules"]
    pairs = {
        "adapter": str(one.run.adapter),
        "task": task.name,
        "base": task.base,
        "layers": layers if isinstance(layers, str) else ", ".join(sorted(layers)),
        "rank": f"{one.rank}, {metrics['trainable_parameters']:,} parameters, {one.bytes / 1e6:.1f} MB",
        "rows": f"{metrics['rows']['train']:,} to train on, {metrics['rows']['validation']:,} to choose by",
        "steps": f"{metrics['steps']:,} of {metrics['global_batch']} rows, learning rate {task.train.learning_rate:g}",
        "loss": f"{metrics['train_loss']:.3f}",
        "trained": f"{one.trained:%Y-%m-%d %H:%M}, {metrics.get('hardware', 'hardware not recorded')}",
    }
    if one.score is not None:
        pairs[f"validation {one.metric}"] = f"{one.score:.2f} at step {metrics['best_step'] or 0:,}"
    for split, found in one.run.scores.items():
        scores = figures(found["scores"]).items()
        pairs[f"{split} rows"] = ", ".join(f"{name} {score['mean']:.1f}" for name, score in scores)
    show_pairs(pairs)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="FOLDER|RUN...", help="Evaluated runs, or a folder of them.")],
    split: Annotated[SplitChoice, typer.Option(help="Which rows.")] = SplitChoice.test,
    metric: Annotated[list[str], typer.Option("--metric", help="Instead of the task's; repeatable.")] = [],  # noqa: B006
    rows: Annotated[int, typer.Option(min=0, help="Rows to show of those that changed most.")] = 3,
) -> None:
    """Compare what evaluated runs answered, as `lora-ft compare` does; a folder stands for all its runs."""
    from lora_ft.cli.tables import show_comparison
    from lora_ft.compare import compare as job
    from lora_ft.run_registry import list_runs
    from lora_ft.runs.run import is_run

    names = [
        str(run) for one in runs for run in ([one] if is_run(one) else [entry.run.folder for entry in list_runs(one)])
    ]
    show_comparison(job(names, split=split.value, metrics=metric), rows)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|ADAPTER...", help="Runs, or folders saved by peft.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make: a run if all are runs, else an adapter.")],
    way: Annotated[str, typer.Option(help="weighted, ties or dare.")] = "weighted",
    weight: Annotated[list[float], typer.Option(help="Of each run, in order; by default alike.")] = [],  # noqa: B006
    density: Annotated[float, typer.Option(min=0.01, max=1, help="Share that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    base: Annotated[str | None, typer.Option(help="Another copy of the base they were trained on.")] = None,
    task: Annotated[str | None, typer.Option(help="Task to score adapters on that have none.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first so many rows of each task.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Combine adapters into one, and score it on the validation rows of every task beside the task's own adapter."""
    from lora_ft.merge_adapters import combine as job
    from lora_ft.models.peft_adapter import open_adapter
    from lora_ft.reports.screen import Screen
    from lora_ft.reports.terminal import console, shorten, table
    from lora_ft.tasks.files import load_task

    with Screen() as screen:
        done = job(
            [open_adapter(run) for run in runs],
            out,
            way=way,
            weights=weight,
            density=density,
            seed=seed,
            base=base,
            task=load_task(task) if task else None,
            limit=limit,
            overwrite=overwrite,
            progress=screen,
        )
    made = table("task", "rows", "score", "its own", "combined", "change")
    for one in done.scores:
        name = one.task if one.adapter == one.task else f"{one.adapter} on {one.task}"
        made.add_row(
            shorten(name, 28),
            f"{one.rows:,}",
            one.metric,
            f"{one.alone:.1f}",
            f"{one.combined:.1f}",
            f"{one.combined - one.alone:+.1f}",
        )
    if done.scores:
        console().print(made)
    console().print(f"{out}: {way}, rank {done.rank}", soft_wrap=True)


@app.command()
def rm(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Delete runs, with adapter, log and scores. Asks first; exit code 1 if the answer is no."""
    from lora_ft.core.errors import UsageError
    from lora_ft.run_registry import entry, remove

    for run in runs:
        entry(run)
    if not yes:
        if not is_terminal(sys.stdin):
            raise UsageError("stdin is not a terminal, so deletion cannot be confirmed", "pass --yes")
        named = printable(", ".join(map(str, runs)))
        if input(f"delete {named}? [y/N] ").strip().lower() not in ("y", "yes"):
            say("nothing was deleted")
            return 1
    say(f"{remove(runs) / 1e6:.1f} MB freed")
    return 0
