"""The command `bench serve`: measure servers under load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ft.cli.options import Json, Overwrite, Quiet
from lora_ft.cli.results import show
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.bench.serve_report import ServeReport

PAGE, MARKDOWN = "serve.html", "serve.md"


def serve(
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Rows (jsonl, json, csv, tsv, parquet).")],
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEMPLATE", help="Prompt with columns, such as 'Summarize: {text}'.")
    ] = "{prompt}",
    urls: Annotated[list[str], typer.Option("--url", metavar="[NAME=]URL", help="Running server; repeatable.")] = [],  # noqa: B006  (typer copies it)
    commands: Annotated[
        list[str],
        typer.Option("--start", metavar="[NAME=]COMMAND", help="Server to start, with {port} in it; repeatable."),
    ] = [],  # noqa: B006
    bundles: Annotated[
        list[str],
        typer.Option("--engine-only", metavar="[NAME=]FOLDER", help="Bundle or bank without HTTP; repeatable."),
    ] = [],  # noqa: B006
    models: Annotated[
        list[str], typer.Option("--model", metavar="NAME", help="Model or adapter; repeatable. Default: all.")
    ] = [],  # noqa: B006
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Ask for answers piece by piece.")] = True,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the file to draw requests from.")] = 64,
    requests: Annotated[int, typer.Option("--requests", min=64, help="Maximum requests at each load.")] = 150,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Duration of each load, if possible.")] = 12.0,
    slo: Annotated[float, typer.Option("--slo", min=1.01, help="Allowed time, as a multiple of the row alone.")] = 3.0,
    common_slo: Annotated[bool, typer.Option("--common-slo", help="Use the first server's limits for all.")] = False,
    growth: Annotated[float, typer.Option("--growth", min=1.01, help="Factor between loads.")] = 1.3,
    loads: Annotated[
        list[float], typer.Option("--load", min=0.01, help="Requests/s, instead of a search; repeatable.")
    ] = [],  # noqa: B006
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, help="Maximum answer length; 0 for the server's.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of rows and arrivals.")] = 0,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write.")] = Path("runs/bench/serve"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure servers under growing load.

    Answers every row alone first. The knee is the largest load at which 90 % of the requests end within --slo times the
    time of their row alone. Every server is also measured at the first server's knee. Writes serve.json, serve.html and
    serve.md. Exit code 1 if a server failed.
    """
    from pydantic import ValidationError

    from lora_ft.bench.serve import REPORT, measure
    from lora_ft.bench.serve_pages import render_html, render_markdown
    from lora_ft.bench.serve_report import LoadPlan, ServeReport
    from lora_ft.bench.subjects import subjects_of
    from lora_ft.bench.versioned_json import first_error
    from lora_ft.core.errors import UsageError
    from lora_ft.core.files import write_text
    from lora_ft.core.interrupts import Terminated
    from lora_ft.core.output_paths import refuse_file
    from lora_ft.core.prompt import Prompt
    from lora_ft.data.readers import read_rows

    for name in (REPORT, PAGE, MARKDOWN):
        refuse_file(out / name, "--out", overwrite=overwrite)
    subjects = subjects_of(urls, commands, bundles, models, stream=stream)
    template = Prompt(prompt)
    prompts = [template.fill(row) for _, row in read_rows(Path.cwd(), str(data), "--data")]
    if not prompts:
        raise UsageError(f"{data} contains no rows", "use a file with rows")
    try:
        plan = LoadPlan(
            rows=rows,
            requests=requests,
            seconds=seconds,
            slo=slo,
            common_slo=common_slo,
            growth=growth,
            loads=tuple(loads),
            max_tokens=max_tokens,
            seed=seed,
        )
    except ValidationError as error:  # infinite numbers
        raise UsageError(first_error(error), "pass a finite number") from error

    def written(report: ServeReport) -> ServeReport:
        write_text(out / PAGE, render_html(report))
        write_text(out / MARKDOWN, render_markdown(report))
        show(report, lambda result: show_servers(result, out / PAGE), as_json=as_json)
        return report

    try:
        with Screen(quiet=quiet) as screen:
            report = measure(subjects, prompts, plan, data=data.name, out=out / REPORT, progress=screen)
    except (KeyboardInterrupt, Terminated):
        if (out / REPORT).is_file():
            written(ServeReport.read(out / REPORT))
        raise
    written(report)
    return int(any(server.error for server in report.servers))


def show_servers(report: ServeReport, page: Path) -> None:
    """Print goodput and times at each server's knee and at the reference load. The page has all loads."""
    from lora_ft.bench.serve_tables import equal_load, knees, warnings
    from lora_ft.reports.terminal import console, render_table

    screen = console()
    for table in (knees(report), *equal_load(report)):
        screen.print(render_table(table))
    for warning in warnings(report):
        screen.print(f"warning: {warning}", soft_wrap=True)
    screen.print(f"page: {page}", soft_wrap=True)
