"""The commands of `lora-ft bench`: time models, compare two reports, time training, measure servers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.cli.bench_serve import serve
from lora_ft.cli.groups import RunByDefault
from lora_ft.cli.options import Json, Overrides, Overwrite, Quiet, TaskArgument, TaskOption
from lora_ft.cli.results import show
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.bench.training_report import TrainingReport

TRAINING_REPORT = "training.json"

app = typer.Typer(
    cls=RunByDefault,
    rich_markup_mode=None,
    help="Time generation, training and servers.\n\n`bench MODEL ...` is short for `bench run MODEL ...`.",
)


@app.command()
def run(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Runs, checkpoints, bases or bundles.")],
    suite: Annotated[str, typer.Option(help="smoke, latency, throughput, serving, peers or a file.")] = "smoke",
    engines: Annotated[
        list[str],
        typer.Option("--engine", help="KIND/PRECISION or FILE.py; repeatable. Default: the suite's, or a bundle's."),
    ] = [],  # noqa: B006  (typer copies it)
    batch: Annotated[list[int], typer.Option(help="Rows generated together; repeatable.")] = [],  # noqa: B006
    source: Annotated[list[int], typer.Option(help="Prompt length, in tokens; repeatable.")] = [],  # noqa: B006
    new: Annotated[list[int], typer.Option(help="Answer length, in tokens; repeatable.")] = [],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads of one call; repeatable.")] = [],  # noqa: B006
    decoding: Annotated[list[str], typer.Option(help="greedy, beams, sample or lookup; repeatable.")] = [],  # noqa: B006
    provider: Annotated[list[str], typer.Option(help="cpu or cuda; repeatable.")] = [],  # noqa: B006
    rounds: Annotated[int | None, typer.Option(help="Timings of each case.")] = None,
    rows: Annotated[int | None, typer.Option(help="Test rows to score; 0 for none.")] = None,
    task: TaskOption = None,
    set_: Overrides = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write. Default: runs/bench/SUITE.")
    ] = None,
    work: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Cache of checkpoints and bundles of the models.")
    ] = Path("runs/bench/models"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Time engines on models.

    Writes report.json, report.html and report.md. Exit code 1 if an engine failed.
    """
    from lora_ft.bench.models import bundle_engines
    from lora_ft.bench.report import BenchReport
    from lora_ft.bench.run import PAGE, REPORT, bench
    from lora_ft.bench.suite import Suite
    from lora_ft.cli.bench_tables import show_report
    from lora_ft.tasks.files import load_task

    names = ("engines", "batch", "source", "new", "threads", "decoding", "provider", "rounds", "rows")
    overrides = {name: context.params[name] for name in names}
    selected = Suite.load(suite, {**overrides, "engines": engines or bundle_engines(models)})
    folder = out or Path("runs/bench") / selected.name
    score_task = load_task(task, set_) if task else None
    try:
        with Screen(quiet=quiet) as screen:
            report = bench(models, selected, folder, task=score_task, work=work, overwrite=overwrite, progress=screen)
    except KeyboardInterrupt:
        if (folder / REPORT).is_file():
            unfinished = BenchReport.read(folder / REPORT)
            show(unfinished, lambda result: show_report(result, folder / PAGE), as_json=as_json)
        raise
    show(report, lambda result: show_report(result, folder / PAGE), as_json=as_json)
    return int(any(contestant.error for contestant in report.contestants))


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="A.json", help="Report to compare with.")],
    new: Annotated[Path, typer.Argument(metavar="B.json", help="Report to judge.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Allowed increase of times, as a fraction.")] = 0.1,
    max_drop: Annotated[
        float, typer.Option("--max-rouge-drop", min=0, help="Allowed drop of scores, in points.")
    ] = 0.5,
    as_json: Json = False,
) -> int:
    """Compare two reports and find regressions.

    Prints the ratio of B to A for every figure, with intervals. Exit code 1 if a figure is too much worse, or missing.
    """
    from lora_ft.bench.regressions import compare as compare_reports
    from lora_ft.bench.regressions import missing
    from lora_ft.bench.report import BenchReport
    from lora_ft.cli.bench_tables import show_changes

    a, b = BenchReport.read(old), BenchReport.read(new)
    changes, absent = compare_reports(a, b, tolerance=tolerance, max_drop=max_drop), missing(a, b)
    show({"changes": changes, "missing": absent}, lambda _: show_changes(changes, absent, a, b), as_json=as_json)
    return int(bool(absent) or any(change.worse for change in changes))


@app.command()
def train(
    task: TaskArgument,
    set_: Overrides = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a pass.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Measured passes of each configuration.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help=f"Folder to write, with {TRAINING_REPORT}. Default: none."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time training in three configurations.

    They are the usual one (padded to the maximum, fp32), the same with padding by batch, and that of `lora-ft train`.
    """
    from lora_ft.bench.training import measure
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.tasks.files import load_task

    if out is not None:
        refuse_file(out / TRAINING_REPORT, "--out", overwrite=overwrite)
    loaded = load_task(task, set_)
    with Screen(quiet=quiet) as screen:
        report = measure(loaded, steps=steps, rounds=rounds, progress=screen)
    if out is not None:
        report.write(out / TRAINING_REPORT)
    show(report, _show_training, as_json=as_json)


app.command()(serve)


def _show_training(report: TrainingReport) -> None:
    from lora_ft.bench.tables import recipes
    from lora_ft.reports.terminal import console, render_table

    console().print(render_table(recipes(report)))
    for warning in report.warnings:
        console().print(f"warning: {warning}", soft_wrap=True)
