"""The verbs of `lora-ft bench`: time models, compare two reports, time training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lora_ft.cli.choices import Overwrite
from lora_ft.reports.screen import Screen


class _RunByDefault(TyperGroup):
    """`bench MODEL` is `bench run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure generation and training; `bench MODEL ...` is `bench run MODEL ...`.",
)


@app.command()
def run(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Runs, checkpoints, bases or bundles.")],
    suite: Annotated[str, typer.Option(help="smoke, latency, throughput, serving, peers, or a YAML file.")] = "smoke",
    engine: Annotated[
        list[str], typer.Option(help="KIND/PRECISION or FILE.py, instead of the suite's; may be repeated.")
    ] = [],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Rows generated together.")] = [],  # noqa: B006
    source: Annotated[list[int], typer.Option(help="Tokens in.")] = [],  # noqa: B006
    new: Annotated[list[int], typer.Option(help="Tokens out.")] = [],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads of one call.")] = [],  # noqa: B006
    decoding: Annotated[list[str], typer.Option(help="greedy, beams, sample or lookup.")] = [],  # noqa: B006
    provider: Annotated[list[str], typer.Option(help="cpu or cuda.")] = [],  # noqa: B006
    rounds: Annotated[int | None, typer.Option(help="Timings of each.")] = None,
    rows: Annotated[int | None, typer.Option(help="Test rows to score; 0 for none.")] = None,
    task: Annotated[str | None, typer.Option(help="Task whose rows are asked, where the models have none.")] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the task.")] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the report; runs/bench/SUITE by default.")
    ] = None,
    work: Annotated[Path, typer.Option(help="What is made of the models is kept here.")] = Path("runs/bench/models"),
    overwrite: Overwrite = False,
) -> int:
    """Time engines on models; write report.json, report.html and report.md. Exit code 1 if an engine failed."""
    from lora_ft.bench.report import BenchReport
    from lora_ft.bench.run import PAGE, REPORT, bench
    from lora_ft.bench.suite import Suite
    from lora_ft.cli.bench_tables import show_report
    from lora_ft.tasks.files import load_task

    given = {
        "engines": engine,
        "batch": batch,
        "source": source,
        "new": new,
        "threads": threads,
        "decoding": decoding,
        "provider": provider,
        "rounds": rounds,
        "rows": rows,
    }
    chosen = Suite.load(suite, given)
    folder = out or Path("runs/bench") / chosen.name
    rows_of = load_task(task, set_) if task else None
    try:
        with Screen() as screen:
            found = bench(models, chosen, folder, task=rows_of, work=work, overwrite=overwrite, progress=screen)
    except KeyboardInterrupt:
        if (folder / REPORT).is_file():
            show_report(BenchReport.read(folder / REPORT), folder / PAGE)
        raise
    show_report(found, folder / PAGE)
    return int(any(one.error for one in found.contestants))


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="A.json")],
    new: Annotated[Path, typer.Argument(metavar="B.json")],
    tolerance: Annotated[float, typer.Option(min=0, help="Share by which times may grow.")] = 0.1,
    max_drop: Annotated[float, typer.Option("--max-rouge-drop", min=0, help="Points that scores may fall by.")] = 0.5,
) -> int:
    """Ratios of B's figures to A's, with intervals. Exit code 1 where one is worse than allowed, or is missing."""
    from lora_ft.bench.regressions import compare, missing
    from lora_ft.bench.report import BenchReport
    from lora_ft.cli.bench_tables import show_changes

    a, b = BenchReport.read(old), BenchReport.read(new)
    changes, gone = compare(a, b, tolerance=tolerance, max_drop=max_drop), missing(a, b)
    show_changes(changes, gone, a, b)
    return int(bool(gone) or any(change.worse for change in changes))


@app.command()
def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task file (YAML), or the name of a shipped recipe.")],
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")] = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Steps of a pass; every recipe takes the same rows.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Passes of each that are measured.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure there.")] = None,
) -> None:
    """Time training: the usual recipe (pad to the maximum, fp32), the same padded by batch, and ours."""
    from lora_ft.bench.training import measure
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.reports.terminal import console
    from lora_ft.tasks.files import load_task

    if json_file is not None:
        refuse_file(json_file, "--json")
    loaded = load_task(task, set_)
    with Screen() as screen:
        found = measure(loaded, steps=steps, rounds=rounds, progress=screen)
    if json_file is not None:
        found.write(json_file)
    console().print(found.table())
    for warning in found.warnings:
        console().print(f"warning: {warning}", soft_wrap=True)
